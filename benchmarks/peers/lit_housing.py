"""The model as LitServe serves it, rows gathered into batches. Run in LitServe's environment."""

import os
import sys

import joblib
import litserve
import numpy as np


class Housing(litserve.LitAPI):
    def setup(self, device):
        self.model = joblib.load(os.environ["PEER_MODEL"])

    def decode_request(self, request):  # annotated, it would be taken for a query field
        return request["row"]

    def predict(self, rows):
        return self.model.predict(np.array(rows))

    def batch(self, inputs):
        return inputs

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return {"predicted_price": float(output)}


if __name__ == "__main__":
    api = Housing(max_batch_size=64, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
