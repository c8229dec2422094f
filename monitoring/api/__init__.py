"""What the APIs of all apps have in common: conventions of fields, parameters and pages."""
