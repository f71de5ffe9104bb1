"""What the command prints for people. Every number here is in the JSON form too."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

SHORT_HASH = 12


def plain(value: Any) -> Any:
    """Return a result as what JSON can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def up(result: Any, console: Console) -> None:
    table = table_of(
        "use case", "model", "metric", "score", "baseline", "version", "bundle", "answer"
    )
    for one in result.served:
        answer = one.answer.get("predicted_label", one.answer.get("predicted_price"))
        table.add_row(
            one.use_case,
            one.candidate,
            one.metric,
            f"{one.score:.4f}",
            f"{one.baseline:.4f}",
            f"{one.version}{' (reused)' if one.reused else ''}",
            one.bundle[:SHORT_HASH],
            f"{answer:.4f}" if isinstance(answer, float) else str(answer),
        )
    console.print(table)
    lines = [(one.use_case, f"{result.server}/{one.use_case}/predict") for one in result.served]
    lines += [("API docs", f"{result.server}/docs"), ("MLflow", result.mlflow)]
    for name, address in lines:
        line(console, f"{name:<10}{address}")
    line(console, f"Up in {result.seconds:.1f} s. Stop it with: make down (or: mlops down)")


def status(result: Mapping[str, Any], console: Console) -> None:
    table = table_of("service", "state", "address", "process", "since")
    for one in result["services"]:
        state = "healthy" if one["healthy"] else "not answering" if one["running"] else "stopped"
        since = _local_time(one["since"]) if one["since"] else ""
        table.add_row(one["name"], state, one["address"], str(one["pid"] or ""), since)
    console.print(table)
    table = table_of("use case", "champion", "model", "bundle")
    for name, one in result["champions"].items():
        if one is None:
            table.add_row(name, "none yet", "", "")
        else:
            table.add_row(name, str(one["version"]), one["candidate"], one["bundle"][:SHORT_HASH])
    console.print(table)


def prepared(result: Mapping[str, Any], console: Console) -> None:
    verb = "checked" if result["reused"] else "written"
    line(
        console,
        f"{result['path']} {verb}: {result['rows']:,} rows, {len(result['columns'])} columns, "
        f"{result['dropped']} dropped for missing values",
    )
    line(console, f"source       {result['origin']}")
    line(console, f"fingerprint  {result['fingerprint']}")


def checked(result: Any, console: Console) -> None:
    if result.findings:
        table = table_of("", "column", "rule", "rows", "first lines", "for example")
        for one in result.findings:
            more = ", …" if one.rows > len(one.lines) > 0 else ""
            lines = ", ".join(map(str, one.lines)) + more
            row = one.column, one.rule, f"{one.rows:,}" if one.rows else "", lines, one.example
            table.add_row(one.kind, *row)
        console.print(table)
    kinds = [one.kind for one in result.findings]
    found = [f"{kinds.count(k)} {k}{'s' * (kinds.count(k) != 1)}" for k in ("violation", "warning")]
    target = "with" if result.has_target else "without"
    compared = f", compared with {result.compared}" if result.compared else ""
    line(
        console,
        f"{result.path}: {result.rows:,} rows, {target} the target{compared}: {', '.join(found)}",
    )


def compared(result: Any, console: Console) -> None:
    line(console, f"{result.before} → {result.after}: {result.summary}")
    found = result.difference
    if found is None:
        return
    rows = f"{found.rows_before:,} rows before, {found.rows_after:,} after, {found.same:,} the same"
    line(console, f"{rows}; a changed row is known by {found.matched_by}")
    table = table_of(
        "column", "", "changed cells", "mean before", "after", "effect", "p (adjusted)"
    )
    for one in found.columns:
        means = ("" if mean is None else f"{mean:.6g}" for mean in (one.before, one.after))
        verdict = "shifted" if one.shifted else ""
        table.add_row(
            one.column,
            verdict,
            f"{one.changed_cells:,}",
            *means,
            f"{one.effect:.3f}",
            f"{one.p:.2g}",
        )
    console.print(table)


def lineage(result: Any, console: Console) -> None:
    count = len(result.chains)
    if result.prediction is None:
        plural = "s" if count != 1 else ""
        line(console, f"{result.kind} {result.asked}: {count} version{plural}")
    else:
        row = result.prediction
        line(console, f"prediction  {row['prediction_id']}, {row['timestamp'][:19]} UTC")
        line(console, f"  inputs    {_value(row['inputs'])}")
        line(console, f"  answer    {_value(row['prediction'])}")
        for warning in row["warnings"]:
            line(console, f"  warning   {warning}")
    for one in result.chains:
        version = "not registered" if one.version is None else f"{one.version}, {one.candidate}"
        line(console, f"→ version   {one.use_case} {version}{', champion' * one.champion}")
        line(console, f"→ bundle    {one.bundle or 'none'}, sealed {(one.sealed_utc or '?')[:19]}")
        line(console, f"→ run       {one.run_id or 'not tracked: mlops track --pending'}")
        line(console, f"→ commit    {one.commit or 'not known'}")
        data = f"{one.data_fingerprint}, {one.data_origin}" if one.data_fingerprint else "not known"
        line(console, f"→ data      {data}")
        between = f"{(one.first_prediction or '')[:19]} to {(one.last_prediction or '')[:19]} UTC"
        made = f"{one.predictions:,}, {between}" if one.predictions else "none"
        line(console, f"← answered  {made}")


def training(result: Any, console: Console) -> None:
    metric = result.metric
    names = [name for name in result.candidates[0].metrics if not name.startswith("cv_")]
    table = table_of("candidate", f"{metric} in 5 folds", *(f"test {n}" for n in names), "seconds")
    for one in result.candidates:
        spread = one.metrics[f"cv_{metric}_mean"], one.metrics[f"cv_{metric}_std"]
        table.add_row(
            f"{one.name} *" if one.name == result.winner else one.name,
            f"{spread[0]:.4f} ± {spread[1]:.4f}",
            *(f"{one.metrics[name]:.4f}" for name in names),
            f"{one.seconds:.1f}",
        )
    table.add_row("baseline", "", *(f"{result.baseline[name]:.4f}" for name in names), "")
    console.print(table)
    line(
        console,
        f"{result.rows_train:,} rows to learn from, {result.rows_test:,} to be measured on; "
        f"{result.rows_dropped} dropped for missing values, {result.rows_shared} on both sides",
    )
    aliases = {number: alias for alias, number in result.products.items()}
    for version in result.registered:
        product = aliases.get(version.version)
        line(
            console,
            f"{version.candidate}: version {version.version}, "
            f"bundle {version.bundle[:SHORT_HASH]}{f', product {product}' if product else ''}"
            f"{' *' * (version.candidate == result.winner)}",
        )


def tuning(result: Any, console: Console) -> None:
    name, metric = result.use_case, result.metric
    table = table_of("trial", "candidate", f"{metric} in 5 folds", "parameters")
    for one in (*result.best, *result.declared):
        table.add_row(
            "as declared" if one.trial is None else str(one.trial),
            one.candidate,
            f"{one.mean:.4f} ± {one.std:.4f}",
            "  ".join(f"{key}={_setting(value)}" for key, value in one.parameters.items()),
        )
    console.print(table)
    why = {"trials": "", "budget": ", the budget is used up", "interrupt": ", interrupted"}
    counts = ", ".join(f"{count} {state}" for state, count in result.counts.items() if count)
    line(
        console,
        f"{result.trials} trials ({counts or 'none finished'}) in study {result.study}, "
        f"{result.seconds:.0f} s{why[result.ended]}",
    )
    if result.ended == "interrupt":
        line(console, "Go on with the same command; trials are tracked when a search ends")
    elif result.tracked_in:
        line(console, f"Tracked in experiment {name}-tuning at {result.tracked_in}")
    if not result.best:
        line(console, f"No trial is finished: give it longer, mlops tune {name} --budget 1h")
        return
    declared = max(result.declared, key=lambda one: one.mean, default=None)
    if declared is not None and result.best[0].mean <= declared.mean:
        line(console, f"No trial beats {declared.candidate} as it is declared")
        return
    line(console, f"Train the best as a candidate: mlops train {name} --from-study")


def promotion(result: Any, console: Console) -> None:
    version = result.version
    if not result.changed:
        line(console, f"{version.use_case}: version {version.version} is champion already")
        late(result, console)
        return
    table = table_of("gate", "outcome", "says")
    for verdict in result.verdicts:
        table.add_row(verdict.gate, verdict.outcome, verdict.says)
    console.print(table)
    before = "no champion before" if result.previous is None else f"before: {result.previous}"
    line(console, f"{version.use_case}: version {version.version} is champion ({before})")
    late(result, console)


def late(result: Any, console: Console) -> None:
    """Say which processes of a server do not answer with a champion yet."""
    for says in result.late:
        line(console, f"{says} — see its log: mlops logs")


def tracked(
    waiting: Sequence[Any], versions: Sequence[Any], console: Console, *, late: bool
) -> None:
    if not waiting:
        line(console, "nothing waits to be tracked")
        return
    table = table_of("use case", "candidate", "since (UTC)", "version", "bundle")
    for one in waiting:
        version = str(one.version) if one.version else ""
        row = one.use_case, one.candidate, one.since_utc[:19], version, one.bundle[:SHORT_HASH]
        table.add_row(*row)
    console.print(table)
    runs = f"{len(waiting)} run{'s' * (len(waiting) != 1)}"
    if late:
        known = ", ".join(f"{v.use_case} version {v.version}" for v in versions) or "none"
        line(console, f"{runs} tracked; registered: {known}")
    else:
        plural = "" if len(waiting) != 1 else "s"
        line(console, f"{runs} wait{plural} to be tracked: mlops track --pending")


def runs(use_case: str, result: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not result:
        line(console, f"{use_case} has no runs yet: train it with: mlops train {use_case}")
        return
    metric, folds = result[0]["metric"], len(result[0]["fold_scores"])
    table = table_of(
        "candidate",
        metric,
        "test",
        "to best",
        "95 % interval",
        "verdict",
        "version",
        "run",
        "begun",
    )
    for one in result:
        compared = one["mean"] is not None
        differs = compared and one["verdict"] != "best"
        bounded = differs and one["low"] is not None
        table.add_row(
            one["candidate"],
            f"{one['mean']:.4f} ± {_number(one['std'])}" if compared else "",
            _number(one["score"]),
            f"{one['difference']:+.4f}" if differs else "",
            f"{one['low']:+.4f} to {one['high']:+.4f}" if bounded else "",
            one["verdict"],
            _number(one["version"]),
            one["run_id"][:SHORT_HASH],
            _local_time(one["start_time"] / 1000)[5:16],
        )
    console.print(table)
    line(
        console,
        f"{metric} is mean ± spread over {folds} folds. Differences are paired, fold by fold, with "
        "Nadeau and Bengio's interval (2003); a tie: it contains 0.",
    )


def shown(result: Mapping[str, Any], console: Console) -> None:
    target = result["target"]
    line(console, f"{result['title']}: {result['task']} of {target['name']} ({target['unit']})")
    table = table_of("field", "unit", "least", "greatest", "what it is")
    for field in result["fields"]:
        limits = f"{field['low']:g}", f"{field['high']:g}"
        table.add_row(field["name"], field["unit"], *limits, field["description"])
    console.print(table)
    table = table_of("version", "model", "score", "bundle", "sealed", "commit")
    for one in result["versions"]:
        names = ["champion"] if one["version"] == result["champion"] else []
        names += [alias for alias, number in result["aliases"].items() if number == one["version"]]
        scores = one.get("scores", {})
        score = scores.get("r2_score", scores.get("accuracy"))
        table.add_row(
            f"{one['version']} {', '.join(names)}".rstrip(),
            one["candidate"],
            f"{score:.4f}" if score is not None else f"unusable: {one['trouble']}",
            one["bundle"][:SHORT_HASH],
            (one.get("sealed_utc") or "")[:19],
            (one.get("commit") or "")[:8],
        )
    console.print(table)
    table = table_of("decided", "decision", "version", "before", "reason")
    for one in result["decisions"]:
        before = "" if one["previous"] is None else str(one["previous"])
        row = one["decided_utc"][:19], one["action"], str(one["version"]), before, one["reason"]
        table.add_row(*row)
    console.print(table)


def answers(result: Sequence[Mapping[str, Any]], console: Console) -> None:
    columns = [name for name in result[0] if name != "warnings"]
    table = table_of(*columns, "warnings")
    for one in result:
        cells = (_interval(one[c]) if c == "interval" else _value(one[c]) for c in columns)
        table.add_row(*cells, "\n".join(one["warnings"]))
    console.print(table)


def _interval(one: Mapping[str, Any]) -> str:
    more = " or more" if one["capped"] else ""
    return f"{one['low']:.4f} to {one['high']:.4f}{more} ({one['coverage']:.0%})"


WINDOWS = {"minute": "last minute", "hour": "last hour", "day": "last day", "all": "ever"}


def metrics(result: Mapping[str, Any], console: Console) -> None:
    for one in result.get("use_cases", {"": result}).values():
        version = f"version {one['model_version']}" if one["model_version"] else "no champion"
        line(
            console,
            f"{one['use_case']}: {one['total_predictions']:,} predictions, "
            f"{one['failed_requests']:,} failed requests ever; {version} answers",
        )
        table = table_of(
            "window", "version", "requests", "a second", "predictions", "errors", "warned",
            "p50 ms", "p95 ms", "p99 ms", "users", "peak hour (UTC)",
        )  # fmt: skip
        for name, title in WINDOWS.items():
            window = one["windows"][name]
            table.add_row(title, "all", *_traffic(window))
            for number, numbers in window["by_version"].items():
                if len(window["by_version"]) > 1:
                    table.add_row("", number, *_traffic(numbers))
        console.print(table)


def _traffic(numbers: Mapping[str, Any]) -> list[str]:
    times, peak = numbers["response_time_ms"], numbers["peak_hour"]
    rate = numbers["error_rate"]
    return [
        f"{numbers['requests']:,}",
        f"{numbers['requests_per_second']:.3g}",
        f"{numbers['predictions']:,}",
        "" if rate is None else f"{rate:.2%}",
        f"{numbers['predictions_with_warnings']:,}",
        *("" if times[name] is None else f"{times[name]:.3g}" for name in ("p50", "p95", "p99")),
        f"{numbers['unique_users']:,}",
        f"{peak['start'][:13]}h: {peak['requests']:,}" if peak else "",
    ]


def predictions(use_case: str, result: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not result:
        line(console, f"{use_case} has answered nothing yet")
        return
    table = table_of("id", "time (UTC)", "prediction", "inputs", "version", "warnings")
    for one in result:
        table.add_row(
            str(one["id"]),
            one["timestamp"][:19],
            _value(one["prediction"]),
            "  ".join(f"{name}={value:g}" for name, value in one["inputs"].items()),
            str(one["model_version"]),
            "\n".join(one["warnings"]),
        )
    console.print(table)


def failures(use_case: str, result: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not result:
        line(console, f"{use_case} has refused nothing yet")
        return
    table = table_of("time (UTC)", "status", "path", "why")
    for one in result:
        why = "; ".join(item["msg"] for item in one["detail"])
        table.add_row(one["timestamp"][:19], str(one["status"]), one["path"], why)
    console.print(table)


def service_logs(printed: Mapping[str, Sequence[str]], console: Console) -> None:
    for name, lines in printed.items():
        line(console, f"── {name} " + "─" * 40)
        for one in lines or ["(nothing yet)"]:
            line(console, one)
    line(console, "Predictions are in: mlops logs housing, mlops logs iris")


def key_made(result: Mapping[str, Any], console: Console) -> None:
    line(console, result["key"])
    line(console, "It is shown this once. Send it as Authorization: Bearer, or as X-API-Key.")


def keys(result: Sequence[Mapping[str, Any]], console: Console) -> None:
    if not result:
        line(console, "no keys: the server is open (make one with: mlops keys add NAME)")
        return
    table = table_of("name", "role", "use case", "made (UTC)", "revoked (UTC)")
    for one in result:
        table.add_row(
            one["name"],
            one["role"],
            one["use_case"] or "all",
            one["created_utc"][:19],
            (one["revoked_utc"] or "")[:19],
        )
    console.print(table)


def table_of(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        table.add_column(column, overflow="fold", no_wrap=position == 0)
    return table


def line(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Mapping):
        return "  ".join(f"{name} {_value(item)}" for name, item in value.items())
    return str(value)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _local_time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")
