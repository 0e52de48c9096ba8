"""Identity of a run's samples, in a few numbers: a resumed run must have the same ones."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from llmtune.samples.streaming import StreamedSamples

if TYPE_CHECKING:
    from llmtune.samples.prepare import Prepared


SAMPLES = 64


def data_identity(prepared: Prepared) -> dict[str, Any]:
    """Return the counts of samples and tokens, and a digest of all lengths and of some samples.

    It depends on what is trained, not on where it was read from or which version of llmtune encoded it. Of a stream it
    is that of its first rows.
    """
    tokens = prepared.train_tokens
    lengths = tokens.lengths
    digest = blake2b(lengths.astype("<i8").tobytes(), digest_size=16)
    for index in sorted({number * (len(tokens) - 1) // max(SAMPLES - 1, 1) for number in range(SAMPLES)}):
        sample = tokens[index]
        for name in ("input_ids", "labels"):
            digest.update(sample[name].astype("<i8").tobytes())
    return {
        "samples": len(tokens),
        "tokens": int(lengths.sum()),
        "trainable_tokens": tokens.report.num_trainable,
        "digest": digest.hexdigest(),
        "streamed": isinstance(prepared.train_set, StreamedSamples),
    }
