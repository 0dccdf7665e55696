"""What is maximised: KL per unit, the ELBO's named parts, beta as a function of the step."""
