"""Commands: what each verb does once its configuration is composed."""
