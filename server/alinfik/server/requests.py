"""What a ScoreRequest must be, and the response that its outcomes make. Pure functions.

Comes in: requests and outcomes. Goes out: every violation at once; a response. Knows nothing of
engines and calls.
"""

from collections.abc import Iterable, Sequence

from alinfik.server.call import Outcome
from alinfik.server.engine import Scored
from alinfik.server.errors import Violation, invalid
from alinfik.server.rejection import Rejection, rejections
from alinfik.server.valuation import valuation
from alinfik.v1 import (
    ExplainRequest,
    ExplainResponse,
    Explanation,
    Sample,
    ScoreRequest,
    ScoreResponse,
    ScoreResult,
)


def sample_violations(request: ScoreRequest | ExplainRequest) -> dict[int, list[Violation]]:
    """All that shows to be wrong with the request's samples, by their place."""
    found = {
        place: _violations(place, rejections(sample))
        for place, sample in enumerate(request.samples)
    }
    return {place: faults for place, faults in found.items() if faults}


def response(request: ScoreRequest, scored: Scored) -> ScoreResponse:
    """One result for each outcome, with the targets that were asked for."""
    wanted = set(request.targets)
    return ScoreResponse(
        results=[
            _result(place, sample, outcome, wanted)
            for place, (sample, outcome) in enumerate(
                zip(request.samples, scored.outcomes, strict=True)
            )
        ],
        timing=scored.timing,
    )


def explanations(request: ExplainRequest, explained: Sequence[Explanation]) -> ExplainResponse:
    """All explanations, with the targets that were asked for."""
    for explanation in explained:
        if request.targets:
            columns = [
                column for column, name in enumerate(explanation.targets) if name in request.targets
            ]
            explanation.targets[:] = [explanation.targets[column] for column in columns]
            for token in explanation.tokens:
                token.values[:] = [token.values[column] for column in columns]
    return ExplainResponse(explanations=explained)


def _result(place: int, sample: Sample, outcome: Outcome, wanted: set[str]) -> ScoreResult:
    if isinstance(outcome, Rejection):
        # The engine says the first fault only; a fault that it alone can see has no others.
        faults = _violations(place, rejections(sample)) or _violations(place, [outcome])
        return ScoreResult(error=invalid(faults))
    return ScoreResult(valuation=valuation(sample, outcome, wanted))


def _violations(place: int, faults: Iterable[Rejection]) -> list[Violation]:
    return [(f"samples[{place}].{fault.field}", fault.message) for fault in faults]
