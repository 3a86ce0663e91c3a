"""Mean-field theory of gradients in wide random nets; numpy and scipy only."""

from evenflow.theory.activation import Activation as Activation
