"""What tests share: servers, faults, checks."""
