"""The request and answer models of a use case, made from its declaration.

The same pydantic model validates the hot path and writes the OpenAPI document, so what is
documented is what is checked.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from mlops.usecase import Feature, UseCase

LARGEST_BATCH = 10_000


def request_model(use_case: UseCase) -> type[BaseModel]:
    """Return the model of one request: every field required, finite, within its hard limits."""
    fields: dict[str, Any] = {
        feature.name: (Annotated[float, _field(feature)], ...) for feature in use_case.features
    }
    return create_model(
        f"{_camel(use_case.name)}Request",
        __config__=ConfigDict(
            extra="forbid",
            strict=True,
            json_schema_extra={"examples": [dict(e) for e in use_case.examples.values()]},
        ),
        __doc__=use_case.description,
        **fields,
    )


def batch_model(use_case: UseCase, one: type[BaseModel]) -> type[BaseModel]:
    """Return the model of a batch: 1 to 10,000 requests, answered in order, all or nothing."""
    instances = Annotated[list[one], Field(min_length=1, max_length=LARGEST_BATCH)]  # type: ignore[valid-type]
    return create_model(
        f"{_camel(use_case.name)}BatchRequest",
        __config__=ConfigDict(
            extra="forbid",
            json_schema_extra={
                "examples": [{"instances": [dict(e) for e in use_case.examples.values()]}]
            },
        ),
        instances=(instances, ...),
    )


def answer_model(use_case: UseCase) -> type[BaseModel]:
    """Return the model of one answer."""
    fields = _answered(use_case)
    if use_case.target.labels:
        fields["probabilities"] = (dict[str, float], Field(description="Of each label; sum to 1"))
    fields["prediction_id"] = (str, Field(description="Names this prediction in the log"))
    fields["model_version"] = (int, Field(description="Registered version that answered"))
    fields["warnings"] = (
        list[str],
        Field(description="What in this request is unlike anything training saw"),
    )
    fields["explanation"] = (
        Explanation | None,
        Field(default=None, description="With `explain=true`: why this is the answer"),
    )
    if not use_case.is_classification:
        fields["interval"] = (
            Interval | None,
            Field(default=None, description="With `interval=true`: between what the truth may lie"),
        )
    return create_model(f"{_camel(use_case.name)}Answer", **fields)


def explained_model(use_case: UseCase) -> type[BaseModel]:
    """Return the model of what `/explain` answers."""
    fields = _answered(use_case)
    return create_model(f"{_camel(use_case.name)}Explained", __base__=Explanation, **fields)


def _answered(use_case: UseCase) -> dict[str, Any]:
    target = use_case.target
    fields: dict[str, Any] = {}
    if target.labels:
        fields[target.name] = (int, Field(description=f"Number of the {target.unit}"))
        fields["predicted_label"] = (str, Field(description=f"Name of the {target.unit}"))
    else:
        fields[target.name] = (float, Field(description=f"In {target.unit}"))
    return fields


def batch_answer_model(use_case: UseCase, one: type[BaseModel]) -> type[BaseModel]:
    return create_model(f"{_camel(use_case.name)}BatchAnswer", predictions=(list[one], ...))  # type: ignore[valid-type]


def _field(feature: Feature) -> Any:
    return Field(
        ge=feature.low,
        le=feature.high,
        allow_inf_nan=False,
        description=f"{feature.description}, in {feature.unit}",
        json_schema_extra={"x-unit": feature.unit},
    )


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


class ClassExplanation(BaseModel):
    """One class's probability, shared among the fields."""

    prediction: float = Field(description="The probability that was answered")
    base_value: float
    contributions: dict[str, float]


class Explanation(BaseModel):
    """Base value plus contributions is the prediction, to 1e-6."""

    explains: str = Field(description="What `prediction` is")
    unit: str
    prediction: float = Field(description="The answer; of a class, its probability")
    base_value: float = Field(description="The mean answer, before anything is known of the row")
    contributions: dict[str, float] = Field(description="What each field adds, in `unit`")
    derived: dict[str, float] = Field(
        description="What derived inputs add; in `contributions`, split equally between the fields "
        "that each is computed from"
    )
    classes: dict[str, ClassExplanation] | None = Field(
        default=None, description="Of a classification: the same for each class"
    )
    text: str = Field(description="The same in words")
    method: str = Field(description="tree_paths, linear or coalitions")
    model_version: int
    bundle: str


class Interval(BaseModel):
    """A prediction interval: the truth lies within it in `coverage` of cases like those learnt."""

    low: float
    high: float
    coverage: float
    capped: bool = Field(
        description="`high` is the value at which training targets were cut off, so that the truth "
        "may be beyond"
    )


class LineageAnswer(BaseModel):
    """From a version back to its data. Null is what is not known here any more."""

    version: int
    champion: bool = Field(description="Whether this version answers now")
    candidate: str | None
    bundle: str
    run_id: str | None = Field(description="Of MLflow; null while it waits to be tracked")
    commit: str | None
    data_fingerprint: str | None
    data_origin: str | None
    sealed_utc: str | None


class PredictionAnswer(BaseModel):
    """A logged prediction and its lineage; never who asked for it."""

    use_case: str
    prediction_id: str
    timestamp: str
    inputs: dict[str, float]
    prediction: float | str
    probabilities: dict[str, float] | None
    warnings: list[str]
    model_version: int
    bundle: str
    lineage: LineageAnswer
    explanation: Explanation | None = Field(
        default=None, description="With `explain=true`: why this was the answer"
    )
    interval: Interval | None = Field(
        default=None, description="With `interval=true`: between what the truth may lie"
    )


class ErrorItem(BaseModel):
    """One thing that is wrong with a request."""

    type: str
    loc: list[str | int]
    msg: str
    input: Any = None


class ErrorAnswer(BaseModel):
    """Every error has this shape."""

    detail: list[ErrorItem]


class ConflictItem(BaseModel):
    """A value that contradicts the one that is attached, which stays."""

    prediction_id: str
    attached: float | str
    sent: float | str


class FeedbackAnswer(BaseModel):
    """What became of each item."""

    attached: int
    already: int = Field(description="Items that had come before, with the same value")
    unknown: list[str] = Field(description="Ids of predictions that are not in the log")
    conflicts: list[ConflictItem]


class FeedbackRefusal(BaseModel):
    """Some items are left over, and named; the counts are of the others, which are attached.

    Without counts, nothing of the body could be read.
    """

    detail: list[ErrorItem]
    attached: int | None = None
    already: int | None = None
    unknown: list[str] | None = None
    conflicts: list[ConflictItem] | None = None
