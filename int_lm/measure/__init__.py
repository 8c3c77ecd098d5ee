"""Measurements of a model: code lengths of documents, and a diagnosis of votes."""
