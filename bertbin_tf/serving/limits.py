"""What a server takes upon itself."""

import dataclasses


def _field(default, help):
    return dataclasses.field(default=default, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes upon itself. Beyond, it says no, and serves the others.

    Args:
        body_bytes: Int >= 1, the size of a request's body; more is answered with 413. Defaults to 4 MiB.
        held_bytes: Int >= `body_bytes`, of all bodies that are being received or read at a time; what goes beyond is
            answered with 503. Defaults to 256 MiB.
        rows: Int >= 1, the texts in a request; more is answered with 400. Defaults to `1024`.
        text_bytes: Int >= 1, the size of one text in UTF-8; more is answered with 400. Defaults to 64 KiB.
        seconds: Float > 0, for the headers of a request to arrive, for its body (else 408), and for its answer (else
            504). Defaults to `30.0`.
        waiting: Int >= `rows`, the texts that may wait for an answer; more is answered with 503. Defaults to `4096`.

    Raises:
        ValueError: If one of them is not positive, `waiting` below `rows`, or `held_bytes` below `body_bytes`.
    """

    body_bytes: int = _field(4 * 2**20, "bytes of a request's body")
    held_bytes: int = _field(256 * 2**20, "bytes of all bodies at a time")
    rows: int = _field(1024, "texts in a request")
    text_bytes: int = _field(64 * 2**10, "bytes of a text")
    seconds: float = _field(30.0, "seconds for a body to arrive, and for its answer")
    waiting: int = _field(4096, "texts that may wait at a time")

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not value > 0:
                raise ValueError(f"Limits: `{name}` must be positive. Received: {name}={value}")
        for whole, part in (("waiting", "rows"), ("held_bytes", "body_bytes")):
            if getattr(self, whole) < getattr(self, part):
                raise ValueError(
                    f"Limits: `{whole}` must be at least `{part}`, or the largest request could never be taken. "
                    f"Received: {whole}={getattr(self, whole)}, {part}={getattr(self, part)}"
                )
