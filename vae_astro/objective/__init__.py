"""What is maximised and how: KL per unit, the ELBO, schedules of beta, the optimiser."""
