"""For training code: does the stored choice still hold for the weights as they are now?"""
