"""The dashboard as methods of a dictionary."""

import webbrowser
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo

from hubsae import survey, text_analysis
from hubsae.circuits import Circuit
from hubsae.dashboard import space
from hubsae.dashboard.build import AnalysedText, Dashboard, check_arguments, check_folder
from hubsae.dashboard.live import Live
from hubsae.dashboard.page_data import Side
from hubsae.dashboard.server import LocalServer, check_port
from hubsae.errors import DataError, HubsaeError, warn
from hubsae.questions import Questions
from hubsae.store import CARD, STATISTICS

_TEXTS, _LETTERS = 3, 400


class WithDashboard(Questions):
    """A dictionary that can be looked at in a browser: served here, written as a folder, published as a Space."""

    def make_dashboard(
        self,
        validation_dataset: Any = None,
        *,
        model: Any = None,
        texts: Sequence[str] | None = None,
        circuits: Sequence[Circuit] = (),
        title: str | None = None,
    ) -> Dashboard:
        """The files of its site, each made when it is asked for.

        validation_dataset: texts for a new analysis, where the known one is not to be used. texts: some to be shown as
        heat maps, by default the beginnings of the first of `validation_dataset`, if that is a list; they need the
        model. circuits: to be shown as graphs; their other dictionaries are shown too where examples of their features
        are known.
        """
        circuits = check_arguments(title, circuits)
        if isinstance(texts, str) or not isinstance(texts, Iterable | None):
            raise DataError(f"texts is a {type(texts).__name__}: expected a list of texts")
        known = self._analysed(validation_dataset, model, examples=False)
        if known is None:
            raise DataError("nothing is known of its features yet; give validation_dataset=texts (or --texts)")
        if not known.has_examples:
            warn("only numbers are known of its features; validation_dataset=texts adds examples and neighbours")
        sides = [Side.of(self, known), *self._others(circuits)]
        if texts is None and isinstance(validation_dataset, list | tuple):
            long = (text for text in validation_dataset if isinstance(text, str) and len(text) > 40)
            texts = [text[:_LETTERS].rsplit(" ", 1)[0] for text in islice(long, _TEXTS)]
        analysed = []
        for text in texts or ():
            analysis = text_analysis.analyze_text(self, self._bound(model), text, known=known)
            analysed.append(AnalysedText(0, text.strip()[:60], analysis))
        return Dashboard.of(sides, title=title, texts=analysed, circuits=circuits)

    def _others(self, circuits: Sequence[Circuit]) -> list[Side]:
        """The other dictionaries of some circuits, each once."""
        found: list[Questions] = [self]
        for circuit in circuits:
            for dictionary in circuit.saes.values():
                if not isinstance(dictionary, Questions) or any(
                    survey.same_dictionary(dictionary, other) for other in found
                ):
                    continue
                known = dictionary.annotations()
                if known is not None and known.has_examples:
                    found.append(dictionary)
        return [Side.of(dictionary, dictionary.features) for dictionary in found[1:]]

    def dashboard(
        self,
        validation_dataset: Any = None,
        port: int = 8080,
        *,
        model: Any = None,
        texts: Sequence[str] | None = None,
        circuits: Sequence[Circuit] = (),
        title: str | None = None,
        open_browser: bool = True,
        say: Callable[[str], Any] = print,
    ) -> None:
        """Serve its site on this machine alone, until it is interrupted, and open it in the browser.

        With a model (`model`, or the one it is bound to) the site also shows the features of texts that are typed, and
        has a bench for steering. port 0: any free one. `say` is told the address. The rest is as in `make_dashboard`.
        """
        check_port(port)
        site = self.make_dashboard(validation_dataset, model=model, texts=texts, circuits=circuits, title=title)
        with_models = [self._models_at_hand(side.dictionary, model) for side in site.sides]
        server = LocalServer(site, port, Live(site.sides, with_models).actions)
        say(f"{site.title}: {server.address} (Ctrl+C ends it)")
        if not any(with_models):
            say("bind a model to type texts and to steer")
        if open_browser:
            webbrowser.open(server.ticket())
        server.run()

    def _models_at_hand(self, dictionary: Any, model: Any) -> Any:
        """The models to compute with, or None."""
        if dictionary is self and model is not None:
            return self._bound(model)
        return getattr(dictionary, "models", None) or None

    def export_dashboard(
        self,
        folder: str | Path,
        validation_dataset: Any = None,
        *,
        model: Any = None,
        texts: Sequence[str] | None = None,
        circuits: Sequence[Circuit] = (),
        title: str | None = None,
        progress: bool = False,
    ) -> Path:
        """Write its site into `folder`: files alone, to be opened from there or served from anywhere."""
        check_folder(folder)
        site = self.make_dashboard(validation_dataset, model=model, texts=texts, circuits=circuits, title=title)
        return site.write(folder, progress)

    def push_dashboard(
        self,
        repo_id: str,
        validation_dataset: Any = None,
        *,
        model: Any = None,
        texts: Sequence[str] | None = None,
        circuits: Sequence[Circuit] = (),
        title: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool | None = None,
        progress: bool = False,
    ) -> CommitInfo:
        """Publish its site as a static Space, which links to the dictionary; one commit.

        A dictionary that was loaded from the Hub gets the link to the Space on its card on main, in a commit of its
        own; one that was not gets it when it is pushed. A private Space and a pull request are linked from nowhere.
        Pieces of the analysed texts are published with the site.
        """
        space.check_repo_id(repo_id)
        site = self.make_dashboard(validation_dataset, model=model, texts=texts, circuits=circuits, title=title)
        commit = space.push(site, repo_id, private=private, token=token, create_pr=create_pr, progress=progress)
        if not create_pr:
            self._link(commit.repo_url.repo_id, token)
        return commit

    def _link(self, space_id: str, token: str | None) -> None:
        """Link to a public Space from here and from the card of the repository that this was loaded from, or warn."""
        source = self.source
        try:
            if not space.is_public(space_id, token):
                return
            self.statistics = {**self.statistics, "dashboard": space_id}
            if source is None or source.revision is None:
                return
            if source.access.get("subfolder"):
                raise DataError("it lies in a folder of a larger repository")
            there = type(self).from_pretrained(source.access["repo_id"], token=token)
            if not survey.same_dictionary(there, self):
                raise DataError("another dictionary is there by now")
            if there.statistics.get("dashboard") == space_id:
                return
            there.statistics["dashboard"] = space_id
            there.push_to_hub(
                source.access["repo_id"],
                token=token,
                allow_patterns=[CARD, STATISTICS],
                commit_message=f"Link the dashboard {space_id}",
            )
        except HubsaeError as error:
            warn(f"the dashboard is published, but the card of {source or 'the dictionary'} has no link to it: {error}")
