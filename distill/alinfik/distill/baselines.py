"""What a proxy has to beat: rankings that need no language model.

In: labelled samples. Out: scores that rank others. Knows nothing of proxies.
"""

import numpy as np
from numpy.typing import NDArray

from alinfik.distill.labels import Labels
from alinfik.distill.ridge import best_penalties, fit_ridge

Floats = NDArray[np.float64]

_PENALTIES = np.logspace(-2, 3, 11)


def length_scores(labels: Labels) -> Floats:
    """Return the number of completion tokens of every sample, [N]."""
    return np.array([sample.completion_length for sample in labels.samples], dtype=np.float64)


def tfidf_scores(training: Labels, labels: Labels) -> Floats:
    """Return what a ridge regression on TF-IDF of words and pairs of words says, [N, K].

    Args:
        training: the samples that it is fitted to, by the ranks of their labels.
        labels: the samples to score, N.
    """
    # Here, since they take seconds to load.
    from scipy.stats import rankdata
    from sklearn.feature_extraction.text import TfidfVectorizer

    def texts(of: Labels) -> list[str]:
        return [f"{row.prompt}\n{row.completion}" for row in of.rows]

    # The usual pattern drops signs and single letters, which are code.
    words = r"\w+|[^\w\s]"
    vectors = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=words)
    known = vectors.fit_transform(texts(training))
    ranks = rankdata(training.values, axis=0) / len(training)
    fitted = fit_ridge(known, ranks, best_penalties(known, ranks, _PENALTIES))
    return fitted.predict(vectors.transform(texts(labels))).reshape(len(labels), -1)
