"""The conformance suites: one module per chapter of the contract, run against a vendor's connector."""
