"""What a ScoreRequest must be, and the response that its outcomes make. Pure functions.

Comes in: requests and outcomes. Goes out: every violation at once; a response. Knows nothing of
engines and calls.
"""

from collections.abc import Iterable, Sequence

from alinfik.server.bundle import Bundle
from alinfik.server.call import Outcome
from alinfik.server.errors import NotFoundError, Violation, invalid
from alinfik.server.rejection import Rejection, rejections
from alinfik.v1 import Sample, ScoreRequest, ScoreResponse, ScoreResult


def sample_violations(request: ScoreRequest) -> dict[int, list[Violation]]:
    """All that shows to be wrong with the request's samples, by their place."""
    found = {
        place: _violations(place, rejections(sample))
        for place, sample in enumerate(request.samples)
    }
    return {place: faults for place, faults in found.items() if faults}


def check_targets(request: ScoreRequest, bundle: Bundle) -> None:
    """Refuse targets that the bundle has not.

    Raises:
        NotFoundError: names them all.
    """
    if unknown := [name for name in request.targets if name not in bundle.targets]:
        raise NotFoundError("target", ", ".join(unknown), bundle.targets)


def response(request: ScoreRequest, outcomes: Sequence[Outcome]) -> ScoreResponse:
    """One result for each outcome, with the targets that were asked for."""
    wanted = set(request.targets)
    return ScoreResponse(
        results=[
            _result(place, sample, outcome, wanted)
            for place, (sample, outcome) in enumerate(zip(request.samples, outcomes, strict=True))
        ]
    )


def _result(place: int, sample: Sample, outcome: Outcome, wanted: set[str]) -> ScoreResult:
    if isinstance(outcome, Rejection):
        # The engine says the first fault only; a fault that it alone can see has no others.
        faults = _violations(place, rejections(sample)) or _violations(place, [outcome])
        return ScoreResult(error=invalid(faults))
    if wanted:
        values = [value for value in outcome.values if value.target in wanted]
        del outcome.values[:]
        outcome.values.extend(values)
    return ScoreResult(valuation=outcome)


def _violations(place: int, faults: Iterable[Rejection]) -> list[Violation]:
    return [(f"samples[{place}].{fault.field}", fault.message) for fault in faults]
