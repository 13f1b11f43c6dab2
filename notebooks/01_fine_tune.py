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
# # Fine-tune BERT under a sigmoid, in plain Keras
#
# **Claim: a pre-trained BERT under a sigmoid head starts at the base rate of the labels and, at a rate that fits each
# layer, learns sentiment within a minute or two.** Everything here is `compile` and `fit`; the pieces from `bertbin_tf`
# are ordinary Keras objects. In Colab, install the package first (`%pip install` with the address of this repository).
# The strategy below takes the devices that are there; on more than one, add `drop_remainder=True` to the batches.

# %%
import tempfile

import keras
import numpy as np
import tensorflow as tf

from bertbin_tf import data, distribute, evaluation
from bertbin_tf.callbacks import SaturationMonitor
from bertbin_tf.export import export_saved_model
from bertbin_tf.memory import keep_freed_memory
from bertbin_tf.metrics import LogitStatistics
from bertbin_tf.models import binary_classifier, load_backbone, load_preprocessor
from bertbin_tf.optimizers import LayerwiseAdamW, head_layers, layerwise_decay

keep_freed_memory()  # on a CPU: steps are faster
keras.utils.set_random_seed(0)
strategy = distribute.strategy("auto")  # one device, several GPUs, or a TPU; before anything else runs

# %% [markdown]
# ## Text to batches
#
# Film reviews with the mean opinion of twenty people; label 1 where it is positive. `read` would take a CSV file, a
# DataFrame or any TensorFlow dataset as well. Batches hold texts of similar length, so that little is padded. Only
# reviews of less than 80 characters are taken here, because short texts make short steps.


# %%
def is_short(text, label):
    return tf.strings.length(text) < 80


train_data = data.read("vader/movies:train").filter(is_short).take(960)
test_data = data.read("vader/movies:test").filter(is_short).take(400)
base_rate = data.base_rate(train_data)
entropy = -base_rate * np.log(base_rate) - (1 - base_rate) * np.log(1 - base_rate)

preprocessor = load_preprocessor("minilm", sequence_length=64)
batches = data.batch_by_length(data.tokenize(train_data, preprocessor), batch_size=16, shuffle_seed=0)
test_batches = data.batch_by_length(data.tokenize(test_data, preprocessor), batch_size=64)

for text, label in train_data.take(3):
    print(int(label), text.numpy().decode()[:100])
print(f"{len(batches)} batches; base rate {base_rate:.3f}; entropy of the labels {entropy:.4f}")

# %% [markdown]
# ## Build
#
# The head's bias is the log-odds of the base rate. So the untrained model answers every text with the base rate, and
# its loss is the entropy of the labels: if it were not, data or loss would not be what we think.

# %%
with strategy.scope():
    backbone = load_backbone("minilm")
    model = binary_classifier(backbone, base_rate=base_rate)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, decay_steps=0.9 * len(batches), warmup_target=1e-4, warmup_steps=0.1 * len(batches)
    )
    # Smaller rates towards the embeddings, a larger one for what pre-training did not fill: the head, which begins
    # at zero, and MiniLM's pooler.
    multipliers = layerwise_decay(model, 0.9) | dict.fromkeys(head_layers(model), 20.0)
    model.compile(
        LayerwiseAdamW(schedule, multipliers, global_clipnorm=1.0),
        keras.losses.BinaryCrossentropy(),
        metrics=["accuracy", keras.metrics.AUC(name="auc"), LogitStatistics()],
    )

first_loss = model.evaluate(batches.take(8), verbose=0, return_dict=True)["loss"]
print(f"loss before training {first_loss:.4f}, entropy of the labels {entropy:.4f}")

# %% [markdown]
# ## Fit

# %%
tokens, _ = next(iter(test_batches))
history = model.fit(
    batches, validation_data=test_batches, callbacks=[SaturationMonitor(tokens)], shuffle=False, verbose=2
)

# %% [markdown]
# ## Look
#
# `logit_spread` is the number to watch: a BERT that does not train gives one answer to every text, and its spread goes
# to zero while the loss still looks like slow learning. The pooler's saturation is the usual suspect, and usually
# innocent.

# %%
for name in ("loss", "val_loss", "val_accuracy", "val_auc", "val_logit_spread", "saturation/pooled_dense"):
    print(f"{name:25} {history.history[name][-1]:.4f}")

# %%
labels = np.concatenate([label for _, label in test_batches.as_numpy_iterator()])
result = evaluation.evaluate(labels, model.predict(test_batches, verbose=0))
print(result)

# %% [markdown]
# ## Export
#
# One folder that TF Serving loads: raw text in, probability out, the tokenizer inside.

# %%
folder = export_saved_model(model, preprocessor, tempfile.mkdtemp() + "/movies")
serve = tf.saved_model.load(str(folder)).signatures["serving_default"]
texts = ["A quiet masterpiece.", "Two hours that I will never get back."]
served = serve(text=tf.constant(texts))["probability"].numpy()
print(dict(zip(texts, served.round(3).tolist(), strict=True)))

# %% [markdown]
# ## The claim

# %%
assert abs(first_loss / entropy - 1) < 0.02, "the untrained model does not start at the base rate"
assert result.roc_auc > 0.85, "the model did not learn"
assert served[0] > 0.5 > served[1], "the exported model gives other answers"
print("Holds: the first loss is the entropy of the labels, and the ROC AUC is", round(result.roc_auc, 3))
