# One image that answers, and the stages that make it:
#
#   training   the whole lock: trains, and runs MLflow       (compose: train, mlflow)
#   trained    a run of it: both use cases, trained and promoted
#   serving    what answers requests, without a model        (compose: api, with a volume of models)
#   api        serving with the trained models, sealed       (docker build -t mlops-housing-api .)
#
# Every package is pinned and checked by hash. Both environments lie in folders of their own and not
# in the base's Python, so that any base with a python3 of 3.11 and its venv module will do.
# Another minor version of Python would run other numerics than those that were measured.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS training
# pip reads these from its environment. Unset they do nothing; behind a proxy with a certificate or
# for a mirror, see docs/deployment.md. They stay out of the image that serves and its history.
ARG PIP_CERT
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
# LightGBM's wheel links to OpenMP, which slim images lack. Without a version: Debian drops old ones.
# hadolint ignore=DL3008
RUN apt-get update -q \
    && apt-get install -y -q --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/runtime.txt requirements/
RUN python3 -m venv /opt/training \
    && /opt/training/bin/pip install --no-cache-dir --disable-pip-version-check --quiet \
        --require-hashes --only-binary :all: -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY src/mlops src/mlops
RUN /opt/training/bin/pip wheel --no-cache-dir --disable-pip-version-check --quiet \
        --no-deps --no-index --no-build-isolation --wheel-dir dist . \
    && /opt/training/bin/pip install --disable-pip-version-check --quiet \
        --no-cache-dir --no-deps --no-index dist/*.whl \
    && install -d -o 10001 -g 0 -m 0775 /app/models /app/state /mlflow
ENV PATH=/opt/training/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MLOPS_HOME=/app/state \
    MLFLOW_DISABLE_TELEMETRY=true \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp
# There is no repository in an image: bundles and runs are told which commit they come from.
ARG COMMIT=unknown
ENV MLOPS_COMMIT=${COMMIT}
WORKDIR /app
USER 10001:0

FROM training AS trained
ENV MLOPS_MODELS=/app/models
RUN mlops train housing --promote && mlops train iris --promote

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS libraries
ARG PIP_CERT
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
WORKDIR /build
COPY requirements/serving.txt requirements/
# One environment installs into the other, which so needs no pip of its own.
RUN python3 -m venv installer && python3 -m venv --without-pip /opt/mlops \
    && installer/bin/pip --python /opt/mlops/bin/python install --no-cache-dir --quiet \
        --disable-pip-version-check --no-compile \
        --require-hashes --only-binary :all: -r requirements/serving.txt
COPY --from=training /build/dist dist
# Bytecode is made here: who answers may write nowhere in the image. It is not compared with the
# source's time, which builders and registries may change.
RUN installer/bin/pip --python /opt/mlops/bin/python install --no-cache-dir --quiet \
        --disable-pip-version-check --no-compile --no-deps --no-index dist/*.whl \
    && python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/mlops/lib

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS serving
COPY --from=libraries /opt/mlops /opt/mlops
# The number, and not a name, so that Kubernetes can see that it is not root. Group 0, so that any
# other number that a platform may choose can write the volume too.
#
# Docker's own Python comes without bytecode of the standard library: made here once, and not at
# each start and health check.
RUN install -d -o 10001 -g 0 -m 0775 /app/state && install -d /app/models \
    && python3 -m compileall -q -j 0 -x '/(site|dist)-packages/|/(test|lib2to3|idlelib|tkinter)/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
ENV PATH=/opt/mlops/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    MLOPS_HOME=/app/state \
    MLOPS_MODELS=/app/models \
    MLOPS_HOST=0.0.0.0 \
    PORT=8000 \
    ORT_DISABLE_TELEMETRY=1 \
    HOME=/tmp
WORKDIR /app/state
EXPOSE 8000
# All that is written: prediction logs, each in its folder. Without -v it is a volume with no name.
VOLUME /app/state
USER 10001:0
# SIGTERM: accepted requests are answered, then it ends with 0.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-IS", "-c", "import http.client, os; \
c = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); \
c.request('GET', '/health/ready'); \
raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["mlops"]
CMD ["serve"]

FROM serving AS api
# Owned by root and not writable: the sealed models change with the image, and only with it.
COPY --from=trained /app/models/bundles /app/models/bundles
COPY --from=trained /app/models/state.db /app/models/state.db
ARG VERSION=0.1.0
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="mlops-housing-api" \
      org.opencontainers.image.description="Answers with the trained models it holds, and logs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${COMMIT}" \
      org.opencontainers.image.licenses="MIT"
