"""The simulated panel: labelers that rank by the hidden gold rubric, with noise. Not people.

It stands in for people where a pipeline must run unattended. It works only through the label
service, sees only what a card shows, and everything it leaves behind says `simulated`. All it
does follows from the round, its settings and the seed: an interrupted panel goes on to the
same rankings.
"""

import hashlib
import random

from alignment.config import PanelConfig
from alignment.errors import LabelError
from alignment.gold_rubric import RUBRIC_VERSION, gold_score
from labeling_ui.cards import Card, CardResponse, RoundStatus
from labeling_ui.labelers import SIMULATED_PREFIX
from labeling_ui.store import LabelStore


def panel_identity(panel: PanelConfig, seed: int) -> str:
    """The panel and its settings in one line; publish the round with it as `panel`."""
    settings = " ".join(f"{name}={value}" for name, value in panel.model_dump().items())
    return f"simulated rubric={RUBRIC_VERSION} {settings} seed={seed}"


def labeler_names(panel: PanelConfig) -> list[str]:
    """Everyone on the panel, spammers last."""
    honest = [f"{SIMULATED_PREFIX}{n + 1}" for n in range(panel.labelers)]
    return honest + [f"{SIMULATED_PREFIX}spammer-{n + 1}" for n in range(panel.spammers)]


def rank_round(store: LabelStore, round_id: str, panel: PanelConfig, *, seed: int) -> RoundStatus:
    """Ranks a round that was published with `panel_identity(panel, seed)`, to its end.

    Labelers take turns in a fixed order, beginning where an interrupted run stopped.

    Raises:
        LabelError: the round is for people or another panel, or it cannot be completed because
            the panel has fewer labelers than rankings are wanted.
    """
    status = store.progress(round_id)
    identity = panel_identity(panel, seed)
    if status.panel != identity:
        raise LabelError(
            f"round {round_id} is for {status.panel or 'people'}, not for this panel "
            f"({identity}); publish the candidates with panel=panel_identity(...)"
        )
    names = labeler_names(panel)
    turn, idle = status.rankings_done, 0
    while idle < len(names):  # a whole turn around without work: done
        name = names[turn % len(names)]
        idle = 0 if _rank_one(store, round_id, name, panel, seed) else idle + 1
        turn += 1
    status = store.progress(round_id)
    if not status.complete:
        raise LabelError(
            f"the panel of {len(names)} ended with {status.rankings_done} of "
            f"{status.rankings_wanted} rankings in round {round_id}; each labeler ranks a prompt "
            "once, so give the panel at least as many labelers as rankings_per_prompt"
        )
    return status


def _rank_one(store: LabelStore, round_id: str, name: str, panel: PanelConfig, seed: int) -> bool:
    card = store.claim(round_id, name)
    if card is None:
        return False
    store.submit(
        card.assignment_id,
        name,
        submission_id=submission_key(seed, name, card.task_id),
        tiers=rank_card(card, name, panel, seed=seed),
    )
    return True


def submission_key(seed: int, name: str, card: str) -> str:
    """The id of a labeler's ranking of a card; the same again if they are interrupted."""
    return _digest(seed, name, card)[:32]


def rank_card(card: Card, name: str, panel: PanelConfig, *, seed: int) -> tuple[int, ...]:
    """Tiers in display order, by noisy gold, or at random for a spammer.

    Scores closer than `tie_threshold` to the best of a tier join it.
    """
    scores = [_opinion(card, response, name, panel, seed) for response in card.responses]
    best_first = sorted(range(len(scores)), key=lambda k: -scores[k])
    tiers = [0] * len(scores)
    tier, tier_best = 0, scores[best_first[0]]
    for k in best_first:
        if tier_best - scores[k] >= panel.tie_threshold and tier_best != scores[k]:
            tier, tier_best = tier + 1, scores[k]
        tiers[k] = tier
    return tuple(tiers)


def _opinion(card: Card, response: CardResponse, name: str, panel: PanelConfig, seed: int) -> float:
    # Drawn per labeler and text, never per place on the card: order must not matter.
    draw = random.Random(_digest(seed, name, card.messages, response.text, response.cut_off))
    if name.startswith(f"{SIMULATED_PREFIX}spammer-"):
        return draw.random()
    question = card.messages[-1].content
    gold = gold_score(question, response.text, finished=not response.cut_off)
    return gold.total + draw.gauss(0.0, panel.noise_sd)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
