"""Models: where their files are.

locate    a model's name to its folder
"""
