"""The hub, by huggingface_hub: what it says of a model, and its files' bytes.

client      a model's files and their hashes, at a commit; one file from any byte on
stream      that file's bytes, as they come
errors      what the network and the library raise, as ours, with the remedy
selection   which of a model's files are needed
pinning     its commit and its manifest, from then on
"""
