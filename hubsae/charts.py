"""Charts as SVG text: the same numbers give the same bytes, so a picture that says nothing new is no new commit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A chart, and the finding that it shows in a sentence, for those who do not see it."""

    svg: str
    alt: str
