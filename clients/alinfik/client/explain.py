"""`alinfik explain`: which tokens of a file's samples make their values, as JSON or in colour."""

import json
from collections import defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from alinfik.client.errors import InvalidSamplesError
from alinfik.client.samples import read_samples
from alinfik.client.sync import Client
from alinfik.client.tally import Tally
from alinfik.client.visible import pictured, printable
from alinfik.v1 import Explanation, Sample, TokenValue

# Fainter than this share of the strongest token is as good as nothing, and stays uncoloured.
_FAINTEST = 0.05


def explain_file(client: Client, file: str, *, targets: Sequence[str], bundle_id: str) -> None:
    """Explain the samples of ``file``, one after another, on standard output.

    Args:
        client: the server to ask.
        file: as ``read_samples`` takes it.
        targets: names of the targets wanted; all where empty. A terminal shows the first.
        bundle_id: the bundle to explain by; the active one where empty.

    Raises:
        FailedError: some samples have no explanation; each was reported on standard error.
        AlinfikError: the server could not be asked, or the bundle cannot explain.
        CommandError: the input is no file of samples.
    """
    console = Console()
    tally = Tally(file, "explanation")
    # One for all, though another be activated meanwhile.
    bundle_id = client.bundle(bundle_id).bundle_id
    for sample in read_samples(file):
        try:
            # Alone, so that a bad one takes no others with it.
            [explanation] = client.explain([sample], targets, bundle_id)
        except InvalidSamplesError as error:
            tally.count(error.errors[0])
            continue
        tally.count(None)
        if console.is_terminal:
            console.print(coloured(sample, explanation), "")
        else:
            print(to_json(sample, explanation), flush=True)
    tally.check("above")


def to_json(sample: Sample, explanation: Explanation) -> str:
    """One line: the sample's tokens, each with its text, its place and a value for each target."""
    return json.dumps(
        {
            "sample_id": explanation.sample_id,
            "targets": list(explanation.targets),
            "truncated": explanation.truncated,
            "tokens": [
                {
                    "text": _field(sample, token)[token.start : token.end],
                    "field": TokenValue.Field.Name(token.field).removeprefix("FIELD_").lower(),
                    "start": token.start,
                    "end": token.end,
                    "values": list(token.values),
                }
                for token in explanation.tokens
            ],
        },
        ensure_ascii=False,
    )


def coloured(sample: Sample, explanation: Explanation) -> Text:
    """The sample's text on the colours of its tokens' values for the first target.

    Green raises the sample's value, red lowers it; the strongest token has the full colour.
    """
    # Several tokens may share a character, as those of an emoji's bytes do.
    values: defaultdict[tuple[int, int, int], float] = defaultdict(float)
    for token in explanation.tokens:
        if token.end > token.start:
            values[token.field, token.start, token.end] += token.values[0]
    strongest = max(map(abs, values.values()), default=0.0)
    texts = {
        TokenValue.FIELD_PROMPT: Text(pictured(sample.prompt)),
        TokenValue.FIELD_COMPLETION: Text(pictured(sample.completion)),
    }
    for (field, start, end), value in values.items():
        if abs(value) > _FAINTEST * strongest:
            texts[TokenValue.Field.ValueType(field)].stylize(_style(value / strongest), start, end)
    target = f" for {explanation.targets[0]}, strongest token {strongest:.3g}"
    cut = ", truncated" if explanation.truncated else ""
    heading = Text(f"{printable(sample.id)}{target}{cut}", style="bold")
    return Text("\n").join([heading, *(text for text in texts.values() if text.plain)])


def _style(strength: float) -> str:
    other = round(255 * (1 - abs(strength)))
    green, red = (255, other) if strength > 0 else (other, 255)
    return f"black on rgb({red},{green},{other})"


def _field(sample: Sample, token: TokenValue) -> str:
    match token.field:
        case TokenValue.FIELD_PROMPT:
            return sample.prompt
        case TokenValue.FIELD_COMPLETION:
            return sample.completion
        case _:
            return ""
