"""A classical classifier for each task, fitted to its support set alone: what few-shot learning has to beat.

    prediction = classifier fitted to {(f(x), y) of the support set}, at f(query)

f is the identity (raw pixels), or a network's features. The classifiers are scikit-learn's with its defaults, but for
logistic's max_iter=1000, so that it converges. On the features of a network that was trained before, by whatever method
(`metarun eval run=PATH eval.classifier=logistic`), this is what Tian et al. 2020, "Rethinking few-shot image
classification: a good embedding is all you need?" evaluate; their features have length 1, these are as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from torch import Generator, Tensor

from metarun.algorithms.embedding import embedded, needs_classes
from metarun.types import Classifier, Episode, HostSide, InputError, Meta, Net, TaskShape, register, setting

CLASSIFIERS = (
    "nearest_centroid", "logistic", "svm", "random_forest", "gradient_boosting", "bagging", "decision_tree"
)  # fmt: skip


@register("algo", "classical")
@dataclass(frozen=True)
class Classical(HostSide):
    classifier: str = setting("logistic", choices=CLASSIFIERS)
    features: str = setting("pixels", choices=("pixels", "network"))

    def check(self, net: Net, task: TaskShape) -> None:
        needs_classes(task)
        if find_spec("sklearn") is None:
            raise InputError("scikit-learn is not installed here: pip install 'metarun[classical]'")

    def init(self, net: Net, generator: Generator) -> Meta:
        """What the features are made with, as it is without any training."""
        return net.init(generator, head=False) if self.features == "network" else {}

    def embed(self, net: Net, meta: Meta, episode: Episode) -> tuple[Tensor, Tensor]:
        if self.features == "network":
            return embedded(net, meta, episode)
        return episode.support_x.flatten(1), episode.query_x.flatten(1)

    def statistics_used(self, net: Net) -> str:
        return net.statistics_used if self.features == "network" else "none"

    def fresh_running(self, net: Net) -> Meta:
        return net.fresh_running() if self.features == "network" else {}

    def make(self, seed: int) -> Classifier:
        from sklearn import ensemble, linear_model, neighbors, svm, tree

        return {
            "nearest_centroid": neighbors.NearestCentroid,
            "logistic": lambda: linear_model.LogisticRegression(max_iter=1000),
            "svm": svm.SVC,
            "random_forest": lambda: ensemble.RandomForestClassifier(random_state=seed),
            "gradient_boosting": lambda: ensemble.GradientBoostingClassifier(random_state=seed),
            "bagging": lambda: ensemble.BaggingClassifier(random_state=seed),
            "decision_tree": lambda: tree.DecisionTreeClassifier(random_state=seed),
        }[self.classifier]()
