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
# # Why does my model not train?
#
# **Claim: the doctor sees within a few dozen steps that the model most often posted does not train, says why, tries the
# cure, and with that cure the same `fit` call goes on to a model that has learned.** In Colab, install the package
# first (`%pip install` with the address of this repository).

# %%
import keras
import numpy as np
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from bertbin_tf import data
from bertbin_tf.doctor import DoctorCallback
from bertbin_tf.memory import keep_freed_memory
from bertbin_tf.models import load_backbone, load_preprocessor

keep_freed_memory()  # on a CPU: steps are faster
keras.utils.set_random_seed(0)

# %% [markdown]
# ## The model as it is posted
#
# A pre-trained BERT, a dense sigmoid on its pooled output, binary cross-entropy, and `"adam"`. Nothing in it looks
# wrong. The texts are film reviews of less than 60 characters, because short texts make short steps.

# %%
preprocessor = load_preprocessor("minilm", sequence_length=32)
tokens, test_tokens = (
    data.tokenize(
        data.read(f"vader/movies:{split}").filter(lambda text, _: tf.strings.length(text) < 60).take(num_rows),
        preprocessor,
    )
    for split, num_rows in (("train", 544), ("test", 320))
)
batches = data.batch_by_length(tokens, 16, shuffle_seed=0, drop_remainder=True)
test_batches = data.batch_by_length(test_tokens, 64)

backbone = load_backbone("minilm")
pooled = backbone(backbone.input)["pooled_output"]
model = keras.Model(backbone.input, keras.layers.Dense(1, activation="sigmoid")(pooled))
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
print(f"{len(batches)} batches")

# %% [markdown]
# ## One `fit`, watched
#
# The callback asks the model the same batch at step 5, 10, 20, 40 ... When the answers to all texts have become one, it
# puts the weights of the start in place and examines the model. `action="treat"` then applies the cure and goes on;
# `"tell"` would only say what it found, `"stop"` would end the training.

# %%
doctor = DoctorCallback(batches, action="treat", budget=600)
history = model.fit(batches, epochs=2, callbacks=[doctor], shuffle=False, verbose=2)

# %% [markdown]
# ## What was found
#
# `confirmed`, where it says so, is not an opinion: two short runs from the same weights on the same batches, with the
# cure and without, were judged by rows that neither was trained on.

# %%
doctor.diagnosis  # noqa: B018

# %%
print(doctor.treated)

# %% [markdown]
# ## What became of it

# %%
labels = np.concatenate([label for _, label in test_batches.as_numpy_iterator()])
probabilities = model.predict(test_batches, verbose=0)[:, 0]
auc = roc_auc_score(labels, probabilities)
print(
    f"{len(labels)} test rows: ROC AUC {auc:.3f}, accuracy {((probabilities > 0.5) == labels).mean():.3f}, "
    f"spread of the probabilities {probabilities.std():.3f}"
)

# %% [markdown]
# ## The claim

# %%
assert doctor.diagnosis.cause == "learning-rate-too-high"
assert doctor.diagnosis.findings[0].status != "refuted" and doctor.diagnosis.findings[0].trial
assert auc > 0.8 and probabilities.std() > 0.1, "the treated model did not learn"
print("Holds: seen, named, tried, cured; the ROC AUC is", round(auc, 3))
