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
from sklearn.metrics import roc_auc_score

from bertbin_tf import data
from bertbin_tf.callbacks import LayerwiseLearningRateController
from bertbin_tf.memory import keep_freed_memory
from bertbin_tf.metrics import LogitStatistics
from bertbin_tf.models import binary_classifier, load_backbone, load_preprocessor
from bertbin_tf.optimizers import LayerwiseAdamW, warmup_cosine

keep_freed_memory()  # on a CPU: steps are faster
RATES = (1e-7, 1e-1)  # near 1e-4 is right

# %% [markdown]
# ## The data
#
# Short film reviews, 46 batches of 16.

# %%
preprocessor = load_preprocessor("minilm", sequence_length=32)
reviews = data.read("vader/movies:train[:720]")
batches = data.batch_by_length(data.tokenize(reviews, preprocessor), 16, shuffle_seed=0)
texts, labels = data.collect(data.read("vader/movies:test[:320]"))
tokens = data.encode(preprocessor, texts)
print(f"{len(batches)} batches, {len(labels)} test texts")

# %% [markdown]
# ## Train
#
# The same model, batches and schedule four times. The controller compares the rate with the size of each layer's
# weights before the first step; what it did is a line in `interventions`.


# %%
def train(rate, controlled):
    keras.utils.set_random_seed(0)
    model = binary_classifier(load_backbone("minilm"))
    schedule = warmup_cosine(rate, len(batches))
    optimizer = LayerwiseAdamW(schedule, global_clipnorm=1.0) if controlled else keras.optimizers.Adam(schedule)
    model.compile(optimizer, "binary_crossentropy", metrics=[LogitStatistics()])
    callbacks = [LayerwiseLearningRateController()] if controlled else []
    model.fit(batches, callbacks=callbacks, shuffle=False, verbose=0)
    for line in callbacks[0].interventions if controlled else ():
        print(line)
    probabilities = model.predict_on_batch(tokens)[:, 0]
    return roc_auc_score(labels, np.nan_to_num(probabilities, nan=0.5)), probabilities.std()


results = {(name, rate): train(rate, name == "controlled") for rate in RATES for name in ("controlled", "adam")}

# %% [markdown]
# ## Look

# %%
for (name, rate), (auc, spread) in results.items():
    print(f"{name:10} asked for {rate:.0e}: ROC AUC {auc:.3f}, spread of the probabilities {spread:.4f}")
figure, axes = plt.subplots(figsize=(5, 3), layout="constrained")
for name in ("controlled", "adam"):
    axes.plot(RATES, [results[name, rate][0] for rate in RATES], "o-", label=name)
axes.axhline(0.5, color="gray", linestyle="--", label="chance")
axes.set(xscale="log", xlabel="rate asked for", ylabel="ROC AUC", ylim=(0.4, 1))
axes.legend()
plt.show()

# %% [markdown]
# ## The claim

# %%
assert all(results["controlled", rate][0] > 0.75 for rate in RATES), "a controlled model did not train"
assert all(results["adam", rate][1] < 1e-3 for rate in RATES), "Adam does not give all texts one answer"
print("Holds:", {f"{name} {rate:.0e}": round(float(auc), 3) for (name, rate), (auc, _) in results.items()})
