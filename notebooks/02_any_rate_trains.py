# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Any learning rate trains
#
# **Claim: asked for a rate a thousand times too high, or a thousand times too low, `LayerwiseLearningRateController`
# trains MiniLM all the same; with Adam, which takes the rate as it is, all texts get one answer.** In Colab, install
# the package first (`%pip install` with the address of this repository).

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from bertbin_tf import data
from bertbin_tf.callbacks import LayerwiseLearningRateController
from bertbin_tf.memory import keep_freed_memory
from bertbin_tf.metrics import LogitStatistics
from bertbin_tf.models import binary_classifier, load_backbone, load_preprocessor
from bertbin_tf.optimizers import LayerwiseAdamW

keep_freed_memory()  # on a CPU: steps are faster
RATES = (1e-7, 1e-1)  # near 1e-4 is right

# %% [markdown]
# ## The data
#
# Film reviews of less than 60 characters, because short texts make short steps; some 24 batches of 16.

# %%
preprocessor = load_preprocessor("minilm", sequence_length=32)


def short_reviews(split, num_rows):
    reviews = data.read(f"vader/movies:{split}").filter(lambda text, label: tf.strings.length(text) < 60)
    return data.tokenize(reviews.take(num_rows), preprocessor)


batches = data.batch_by_length(short_reviews("train", 448), 16, shuffle_seed=0, drop_remainder=True)
test_batches = data.batch_by_length(short_reviews("test", 320), 64)
labels = np.concatenate([some for _, some in test_batches.as_numpy_iterator()])
print(f"{len(batches)} batches, {len(labels)} test texts")

# %% [markdown]
# ## Train
#
# Four times the same weights and batches. A model is compiled once for both rates and put back to its start between
# them. The controller compares the rate with the size of each layer's weights before the first step; what it did is a
# line in `interventions`.


# %%
def train(optimizer, make_callbacks):
    """Trains at each rate, and returns the ROC AUC and the spread of the probabilities by rate."""
    keras.utils.set_random_seed(0)
    model = binary_classifier(load_backbone("minilm"))
    model.compile(optimizer, "binary_crossentropy", metrics=[LogitStatistics()])
    optimizer.build(model.trainable_variables)
    variables = [*model.weights, *optimizer.variables]
    start = [variable.numpy() for variable in variables]
    results = {}
    for rate in RATES:
        for variable, value in zip(variables, start, strict=True):
            variable.assign(value)
        optimizer.learning_rate = rate
        callbacks = make_callbacks()
        model.fit(batches, callbacks=callbacks, shuffle=False, verbose=0)
        for callback in callbacks:
            print(*callback.interventions, sep="\n")
        probabilities = np.nan_to_num(model.predict(test_batches, verbose=0)[:, 0], nan=0.5)
        results[rate] = roc_auc_score(labels, probabilities), probabilities.std()
    return results


results = {
    "controlled": train(LayerwiseAdamW(global_clipnorm=1.0), lambda: [LayerwiseLearningRateController()]),
    "adam": train(keras.optimizers.Adam(), list),
}

# %% [markdown]
# ## Look

# %%
for name, by_rate in results.items():
    for rate, (auc, spread) in by_rate.items():
        print(f"{name:10} asked for {rate:.0e}: ROC AUC {auc:.3f}, spread of the probabilities {spread:.4f}")
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for name, by_rate in results.items():
    axes.plot(RATES, [auc for auc, _ in by_rate.values()], "o-", label=name)
axes.axhline(0.5, color="gray", linestyle="--", label="chance")
axes.set(xscale="log", xlabel="rate asked for", ylabel="ROC AUC", ylim=(0.4, 1))
axes.legend()
plt.show()

# %% [markdown]
# ## The claim

# %%
assert all(results["controlled"][rate][0] > 0.75 for rate in RATES), "a controlled model did not train"
assert all(results["adam"][rate][1] < 1e-3 for rate in RATES), "Adam does not give all texts one answer"
print("Holds:", {name: [round(float(auc), 3) for auc, _ in by_rate.values()] for name, by_rate in results.items()})
