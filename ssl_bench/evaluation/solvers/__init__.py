"""Classifiers and searches on frozen features: exact k-NN, ridge, logistic regression, linear and attentive heads."""
