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
# # Is it saturation?
#
# **Claim: neither a sigmoid that starts saturated, nor Keras' own head, nor the lack of a hidden layer keeps a BERT
# from training. A rate that is too high for the encoder does, and then all texts get one logit.** Each usual
# explanation is tried here, with and without, on MiniLM and film reviews. In Colab, install the package first (`%pip
# install` with the address of this repository).

# %%
import keras
import numpy as np
import tensorflow as tf
from IPython.display import HTML, display
from sklearn.metrics import roc_auc_score

from bertbin_tf import data
from bertbin_tf.memory import keep_freed_memory
from bertbin_tf.models import binary_classifier, load_backbone, load_preprocessor
from bertbin_tf.notebook import html_table
from bertbin_tf.optimizers import LayerwiseAdamW

keep_freed_memory()  # on a CPU: steps are faster
preprocessor = load_preprocessor("minilm", sequence_length=32)


def short_reviews(split, num_rows):
    """Returns tokens of reviews of less than 80 characters: short texts make short steps."""
    reviews = data.read(f"vader/movies:{split}").filter(lambda text, label: tf.strings.length(text) < 80)
    return data.tokenize(reviews.take(num_rows), preprocessor)


train_rows = short_reviews("train", 400)
batches = data.batch_by_length(train_rows, 16, shuffle_seed=0, drop_remainder=True)
test_batches = data.batch_by_length(short_reviews("test", 256), 64)
labels = np.concatenate([some for _, some in test_batches.as_numpy_iterator()])
print(f"{len(batches)} batches of 16, {len(labels)} test texts, {np.mean(labels):.0%} positive")

# %% [markdown]
# ## Does a saturated sigmoid lose its gradient?
#
# The textbook derivative of the sigmoid, p (1 - p), is 2e-9 at a logit of 20. But Keras sees that a sigmoid is the last
# operation and takes the loss from the logit, where the derivative is p - y: of a wrong answer, 1.

# %%
keras.utils.set_random_seed(0)
model = binary_classifier(load_backbone("minilm"))
model.compile(LayerwiseAdamW(1.5e-4, global_clipnorm=1.0), "binary_crossentropy")
model.optimizer.build(model.trainable_variables)
logit = model.get_layer("logit")
head = logit.get_weights()

tokens, some = next(iter(batches))
logit.bias.assign([20.0])
with tf.GradientTape() as tape:
    loss = model.compute_loss(y=tf.zeros_like(some), y_pred=model(tokens))
gradient_of_wrong_answers = float(tape.gradient(loss, logit.bias.value)[0])
print(f"all logits at 20, all labels 0: loss {loss:.1f}, gradient of the bias {gradient_of_wrong_answers:.3f}")

# %% [markdown]
# ## With and without
#
# One model, put back to its start before each trial, weights and optimizer; some 22 steps each. `bias at 5` starts
# wrong: every text is positive with 99.3 %. It needs three times as many steps, in which the encoder learns long before
# the bias comes down. `Keras' head` is a random kernel under a bias of 0. The head's rate is 20 times the encoder's
# except in `one rate`. The last one has Adam's default rate in all layers, and twice as many steps. Three numbers at
# the end: the ROC AUC on test texts, how many pooler units are saturated (beyond 0.99), and the standard deviation of
# the logits over the texts.

# %%
start, fresh = model.get_weights(), [variable.numpy() for variable in model.optimizer.variables]
keras_head = [keras.initializers.GlorotUniform(seed=0)(logit.kernel.shape), np.zeros(1)]


def look_inside(model):
    """Returns a model from tokens to the pooler's units and the logits."""
    return keras.Model(model.input, [model.get_layer("classifier_dropout").output, model.get_layer("logit").output])


def train(model, look, batches, weights, rate=1.5e-4, head_multiplier=20.0, epochs=1):
    """Trains from the start, and returns first loss, ROC AUC, pooler saturation and spread of the logits."""
    model.optimizer.learning_rate = rate
    model.optimizer.set_multiplier("logit", head_multiplier)
    model.get_layer("logit").set_weights(weights)
    first_loss = model.evaluate(batches.take(8), verbose=0)
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)
    units, logits = look.predict(test_batches, verbose=0)
    return first_loss, roc_auc_score(labels, logits), (np.abs(units) > 0.99).mean(), logits.std()


def put_back():
    model.set_weights(start)
    for variable, value in zip(model.optimizer.variables, fresh, strict=True):
        variable.assign(value)


look = look_inside(model)
trials = {
    "as recommended": dict(weights=head),
    "bias at 5": dict(weights=[head[0], np.array([5.0])], epochs=3),
    "Keras' head": dict(weights=keras_head),
    "one rate": dict(weights=keras_head, head_multiplier=1.0),
    "1e-3 everywhere": dict(weights=keras_head, rate=1e-3, head_multiplier=1.0, epochs=2),
}
results = {}
for name, trial in trials.items():
    put_back()
    results[name] = train(model, look, batches, **trial)

# %% [markdown]
# And a hidden layer, which is another model.

# %%
keras.utils.set_random_seed(0)
deeper = binary_classifier(load_backbone("minilm"), hidden_dim=128)
deeper.compile(LayerwiseAdamW(1.5e-4, {"hidden": 20.0}, global_clipnorm=1.0), "binary_crossentropy")
deeper.optimizer.build(deeper.trainable_variables)
results["hidden layer"] = train(deeper, look_inside(deeper), batches, deeper.get_layer("logit").get_weights())

# %%
HEADER = ("trial", "first loss", "ROC AUC", "saturated pooler units", "spread of the logits")
rows = [(name, f"{a:.3f}", f"{b:.3f}", f"{c:.1%}", f"{d:.3f}") for name, (a, b, c, d) in results.items()]
display(HTML(html_table(HEADER, rows)))

# %% [markdown]
# ## One positive text to nine
#
# With the prior in the bias the first loss is the entropy of the labels. Without, the first steps go into learning what
# could have been counted; that is all that the prior does.

# %%
negative = train_rows.filter(lambda tokens, label: label == 0).take(144)
positive = train_rows.filter(lambda tokens, label: label == 1).take(16)
rare = negative.concatenate(positive).padded_batch(32).apply(tf.data.experimental.assert_cardinality(5))
put_back()
first_losses = {}
for name, bias in (("prior", np.log(0.1 / 0.9)), ("zero", 0.0)):
    logit.set_weights([head[0], np.array([bias])])
    first_losses[name] = model.evaluate(rare, verbose=0)
print(
    {name: round(loss, 3) for name, loss in first_losses.items()},
    "entropy",
    round(-0.1 * np.log(0.1) - 0.9 * np.log(0.9), 3),
)

# %% [markdown]
# ## The claim
#
# Keras' random kernel does no worse than the one that starts at zero, through which the encoder gets no gradient in its
# first step; nor can they be told apart after an epoch (`make demo ARGS=--compare`).

# %%
auc = {name: result[1] for name, result in results.items()}
assert gradient_of_wrong_answers > 0.99, "the saturated sigmoid lost its gradient"
spread = {name: result[3] for name, result in results.items()}
trained = ("as recommended", "bias at 5", "Keras' head", "hidden layer")
assert all(auc[name] > 0.65 and spread[name] > 0.05 for name in trained), "a usual explanation made a difference"
assert spread["1e-3 everywhere"] < 0.01, "a rate of 1e-3 did not destroy it"  # and of one answer the AUC is chance
assert first_losses["zero"] > 1.5 * first_losses["prior"], "the prior did not lower the first loss"
print("Holds:", {name: round(float(value), 3) for name, value in auc.items()})
