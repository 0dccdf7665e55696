"""Faults of any model, found by experiments on it: `audit` and what it reports."""

from vae_astro.collapse.audit.conduct import audit
from vae_astro.collapse.audit.findings import AuditReport, Finding, Untested

__all__ = ["AuditReport", "Finding", "Untested", "audit"]
