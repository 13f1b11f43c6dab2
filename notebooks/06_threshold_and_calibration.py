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
# # From a probability to a decision
#
# **Claim: of a rare class a model may rank texts well and still decide badly at 0.5. A threshold tuned on other texts
# mends the decisions, a temperature mends the probabilities, and neither changes the ranking.** To be quick, only the
# head is fitted here. In Colab, install the package first (`%pip install` with the address of this repository).

# %%
import keras
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf

from bertbin_tf import data, evaluation
from bertbin_tf.models import binary_classifier, fit_head, load_backbone, load_preprocessor

keras.utils.set_random_seed(0)

# %% [markdown]
# ## A rare class
#
# Film reviews of which one in eight is positive, as complaints or spam are rare among what one has to read. Three
# parts: to train, to tune, to measure.


# %%
def make_rare(texts, labels, num_rows, seed=0):
    """Draws rows of which an eighth is positive."""
    generator = np.random.default_rng(seed)
    positive, negative = (generator.permutation(np.flatnonzero(labels == label)) for label in (1, 0))
    chosen = generator.permutation(np.concatenate([positive[: num_rows // 8], negative[: num_rows - num_rows // 8]]))
    return np.array(texts)[chosen], labels[chosen]


train_texts, train_labels = make_rare(*data.collect(data.read("vader/movies:train[:40%]")), 640)
validation_texts, validation_labels = make_rare(*data.collect(data.read("vader/movies:train[60%:]")), 640)
test_texts, test_labels = make_rare(*data.collect(data.read("vader/movies:test")), 960)
print({len(labels): round(float(labels.mean()), 3) for labels in (train_labels, validation_labels, test_labels)})

# %% [markdown]
# ## Train
#
# Logistic regression on what the pre-trained encoder says of a text: 384 features of 640 texts, so that it is surer of
# itself than it should be.

# %%
preprocessor = load_preprocessor("minilm", sequence_length=48)
rows = tf.data.Dataset.from_tensor_slices((train_texts, train_labels))
batches = data.batch_by_length(data.tokenize(rows, preprocessor), 64)
model = binary_classifier(load_backbone("minilm"), base_rate=float(train_labels.mean()), pooling="mean")
fit_head(model, batches)


def predict(texts):
    parts = [data.encode(preprocessor, part) for part in np.array_split(texts, len(texts) // 64)]
    return np.concatenate([model.predict_on_batch(part)[:, 0] for part in parts]).astype("float64")


on_validation, on_test = predict(validation_texts), predict(test_texts)

# %% [markdown]
# ## The temperature, then the threshold
#
# Both on the validation texts. A temperature above 1 moves the answers towards 0.5 and changes no decision there.

# %%
temperature = evaluation.fit_temperature(validation_labels, on_validation)
calibrated = evaluation.apply_temperature(on_test, temperature)
threshold = evaluation.tune_threshold(
    validation_labels, evaluation.apply_temperature(on_validation, temperature), metric="f1"
)
print(f"temperature {temperature:.2f}, threshold {threshold:.3f}")
before = evaluation.evaluate(test_labels, on_test)
after = evaluation.evaluate(test_labels, calibrated, threshold=threshold)
for name in ("roc_auc", "log_loss", "ece", "accuracy", "balanced_accuracy", "f1", "mcc"):
    print(f"{name:18} {getattr(before, name):.3f} -> {getattr(after, name):.3f}")

# %% [markdown]
# ## Look
#
# Accuracy is no measure here: calling every text negative has 0.875.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for label in (0, 1):
    left.hist(calibrated[test_labels == label], np.linspace(0, 1, 31), alpha=0.6, label=f"label {label}")
left.axvline(threshold, color="black", linestyle="--", label="tuned threshold")
left.set(xlabel="calibrated probability", ylabel="test texts", yscale="log")
left.legend()
thresholds = np.linspace(0.02, 0.98, 49)
for name in ("f1", "balanced_accuracy", "accuracy"):
    values = [
        getattr(evaluation.evaluate(test_labels, calibrated, threshold=t, num_bootstrap=0), name) for t in thresholds
    ]
    right.plot(thresholds, values, label=name)
right.axvline(threshold, color="black", linestyle="--")
right.set(xlabel="threshold")
right.legend()
plt.show()

# %% [markdown]
# ## The claim

# %%
assert before.roc_auc > 0.7 and abs(before.roc_auc - after.roc_auc) < 1e-9, "the ranking changed"
assert after.log_loss < before.log_loss, "the temperature did not mend the probabilities"
assert after.f1 > before.f1 + 0.02, "the threshold did not mend the decisions"
print(f"Holds: F1 {before.f1:.3f} -> {after.f1:.3f}, log loss {before.log_loss:.3f} -> {after.log_loss:.3f}")
