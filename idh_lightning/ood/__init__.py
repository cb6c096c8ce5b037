"""Out-of-distribution detection: is a study like the training ones?"""
