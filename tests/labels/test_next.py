"""The order in which unlabelled images are shown: unsure ones first, and one of a kind before a second."""

import numpy as np

from reprise.labels.next import teaching_order


def test_distances_are_those_of_the_gradients():
    random = np.random.default_rng(0)
    probabilities = random.dirichlet(np.ones(4), 30)
    features = random.normal(size=(30, 5))
    gradients = (probabilities - np.eye(4)[probabilities.argmax(1)])[:, :, None] * features[:, None, :]
    gradients = gradients.reshape(30, -1)
    chosen = [int((gradients**2).sum(1).argmax())]
    while len(chosen) < 10:
        far = ((gradients[:, None] - gradients[chosen]) ** 2).sum(2)
        far = np.minimum(far.min(1), (gradients**2).sum(1))
        far[chosen] = -1
        chosen.append(int(far.argmax()))
    assert teaching_order(probabilities, features, 10) == chosen
    assert sorted(teaching_order(probabilities, features, 99)) == list(range(30))
