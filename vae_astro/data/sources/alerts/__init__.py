"""Alerts: packets of ZTF and Rubin, tables of brokers."""
