"""The pictures and clips that `qvl chat` begins with: those of `qvl infer`, but for standard input, which is typed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import typer

from qvl.cli.options import MediaOptions, checked, option


@dataclass(frozen=True)
class TalkMediaOptions(MediaOptions):
    """Without `-`, which is refused here."""

    media: Annotated[
        list[str],
        typer.Argument(
            help="Pictures and clips in order: files, http(s) URLs or data: URIs.",
            metavar="MEDIA",
            show_default=False,
            callback=checked("MEDIA", None, None, False),
        ),
    ] = field(default_factory=list)
    video: Annotated[
        list[str],
        option(
            "--video",
            metavar="PATH",
            help="A clip: a file, a folder of frames, a quoted glob of frames or a URL. Repeatable; after MEDIA.",
        ),
    ] = field(default_factory=list)
