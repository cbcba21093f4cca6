"""Classifiers on frozen features: logistic regression, ridge, neighbours, and heads on tokens."""
