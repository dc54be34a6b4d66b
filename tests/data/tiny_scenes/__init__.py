"""A TFDS dataset for the tests; a package, because TFDS looks for files beside the builder."""
