"""A site of a dictionary to look at: static files, the same from a folder, a local server and a Space."""

from hubsae.dashboard.build import AnalysedText, Dashboard
from hubsae.dashboard.page_data import Column, Pairs, Side

__all__ = ["AnalysedText", "Column", "Dashboard", "Pairs", "Side"]
