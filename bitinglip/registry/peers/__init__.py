"""Nodes take models from each other before they ask the hub.

sources     the nodes that have a model, and its files from one of them
server      the side that gives: signed requests, read only
"""
