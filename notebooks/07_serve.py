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
# # From a trained model to a server, and to who asks it
#
# **Claim: what a server answers over HTTP, to raw text, is what the model answers in this process.** The exported
# folder is what TF Serving watches; `ModelServer` answers as TF Serving does where its image is not at hand. To be
# quick, only the head is fitted here, to the features of the untouched encoder. In Colab, install the package first
# (`%pip install` with the address of this repository).

# %%
import tempfile
import threading

import keras
import numpy as np
from sklearn.metrics import roc_auc_score

from bertbin_tf import data
from bertbin_tf.export import export_saved_model
from bertbin_tf.export.verification import verify
from bertbin_tf.models import binary_classifier, fit_head, load_backbone, load_preprocessor
from bertbin_tf.serving import ModelServer, RestClient

keras.utils.set_random_seed(0)

# %% [markdown]
# ## A model
#
# Logistic regression on what a pre-trained encoder says of a text, put into the sigmoid head.

# %%
preprocessor = load_preprocessor("minilm", sequence_length=64)
reviews = data.read("vader/movies:train[:15%]")
batches = data.batch_by_length(data.tokenize(reviews, preprocessor), batch_size=64)
model = binary_classifier(load_backbone("minilm"), base_rate=data.base_rate(reviews), pooling="mean")
fit_head(model, batches)

texts, labels = data.collect(data.read("vader/movies:test[:10%]"))
tokens = data.encode(preprocessor, texts)
expected = model.predict_on_batch(tokens)[:, 0]
auc = roc_auc_score(labels, expected)
print(f"{len(texts)} test texts; ROC AUC {auc:.3f}")

# %% [markdown]
# ## Export
#
# Text in, probability out: the tokenizer is inside the graph. The version is written beside its place, loaded as a
# server loads it, compared with this model, and only then given its name; `verify` does the last two again, anywhere.

# %%
folder = export_saved_model(model, preprocessor, tempfile.mkdtemp() + "/movies", facts={"trained_on": "film reviews"})
print(sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()))
print(verify(folder))

# %% [markdown]
# ## Serve, and ask
#
# `bertbin-tf serve saved_models/movies` in a terminal does the same, and `RestClient` asks TF Serving just as well.

# %%
server = ModelServer(folder.parent, port=0, report=print)
threading.Thread(target=server.run, daemon=True).start()
assert server.wait(seconds=120)

client = RestClient("movies", f"http://127.0.0.1:{server.port}")
for text in ("A quiet masterpiece.", "Two hours that I will never get back."):
    answer = client.predict([text])
    print(f"{answer.probability[0]:.3f}  {text}")
print(client.info())

# %% [markdown]
# ## A new version, under load
#
# Four clients keep asking while a second version arrives; the server takes it up without losing a request.

# %%
served = client.predict(texts).probability
lost, num_answers = [], []


def ask():
    own_client = RestClient("movies", f"http://127.0.0.1:{server.port}")
    while own_client.versions().get(2) != "AVAILABLE":
        try:
            own_client.predict(texts[:4])
            num_answers.append(1)
        except Exception as error:  # whatever it is, it is a request that was lost
            lost.append(error)


askers = [threading.Thread(target=ask) for _ in range(4)]
for asker in askers:
    asker.start()
export_saved_model(model, preprocessor, folder.parent)  # version 2
for asker in askers:
    asker.join()
print(f"versions: {client.versions()}; {len(num_answers)} requests answered, {len(lost)} lost")

# %% [markdown]
# ## The claim

# %%
difference = float(np.abs(served - expected).max())
assert difference < 1e-4, "the server gives other answers than the model"
assert not lost and client.versions().get(2) == "AVAILABLE", "the new version was not taken up, or requests were lost"
assert auc > 0.75
server.stop()
print(f"Holds: over HTTP and in this process the answers differ by {difference:.0e} at most.")
