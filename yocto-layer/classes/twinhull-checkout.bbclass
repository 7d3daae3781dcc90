# nooelint: oelint.bbclass.underscores
# Files of the checkout that the layer lies in, by file:// and their path in the repository.

FILESEXTRAPATHS:prepend := "${TWINHULL_CHECKOUT}:"
