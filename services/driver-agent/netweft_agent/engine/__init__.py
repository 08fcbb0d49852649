"""From objects to the kernel: store, journal, apply, reconcile."""
