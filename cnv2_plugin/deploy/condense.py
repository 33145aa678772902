"""Masked training form -> standard group convolutions; the names of :mod:`cnv2_plugin.models.condense`."""

from ..models.condense import ClassifierCost, classifier_cost, condense, condense_state_dict

__all__ = ['ClassifierCost', 'classifier_cost', 'condense', 'condense_state_dict']
