"""Surgery on networks that were not built with the layers of this package: learned groups and reactivation."""
