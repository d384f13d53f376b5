"""Data that ships with the package: MNIST, all 70,000 digits, in Keras' layout."""
