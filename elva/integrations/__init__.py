"""ELVA's losses, reward and models in the conventions of other libraries; each module imports only its own."""
