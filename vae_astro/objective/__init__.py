"""What is maximised: the KL per unit, the ELBO's named parts, and beta as a function of the step."""
