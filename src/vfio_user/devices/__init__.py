"""The devices that come with this package; ``registry`` finds these and those of other packages."""
