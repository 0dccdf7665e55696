"""Plain torch modules: networks, posterior, prior, likelihoods. Nothing here knows of files."""
