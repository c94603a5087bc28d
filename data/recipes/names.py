"""The toys' names, one each: single tokens of CLIP's, and no word of the world otherwise."""

from __future__ import annotations

_NAMES = """
aaron abby adam adele adrian agnes aiden alan albert alex alexa alfie alfred alice alicia allen allison alvin amanda
amelia amy andre andrea andrew andy angela angelo angus anita anna annie anthony antonio ariana arnold arthur ashley
audrey austin barbara barney becky bella ben benjamin bernard beth betty bianca blake bobby boris brad brandon
brenda brian bruce bruno bryan caleb calvin camila carl carla carlos carmen carol caroline cassie cathy cecil
charlie charlotte chester chloe chris claire clara clark claudia cody colin connie connor craig curtis cynthia
daniel danny darren dave david dean debbie dennis derek diana diego donald donna doris dorothy douglas duncan dustin
dylan eddie edgar edith edna edward eileen elaine eleanor elena eli elias elijah elisa ellen ellie elliot elmer elsa
elvis emil emily emma enrique eric erica ernest esther ethan eva evan evelyn felix fiona frances francis frank fred
freddie gabriel gary gavin george gerald gilbert gina gloria gordon grace greg gus gwen hannah harold harriet harry
harvey hector heidi helen henry herbert holly homer howard hugo ian ingrid irene iris isaac isabel isla ivan jackie
jacob jake james jamie jane janet jared jason javier jay jeff jennifer jenny jeremy jerry jesse jessica jill jim
jimmy joan joanna joel joey john johnny jonas jordan jorge joseph joshua joyce juan judy julia julian juliet justin
karen karl kate katie kayla keith kelly kenny kevin kim kirk kurt kyle lara larry laura lauren leah leo leon leonard
leslie lewis liam linda lisa logan lois lola lorenzo louis louise lucas lucy luigi luis luke luna lydia mabel maggie
marco marcus margaret maria marie mario marion martha martin mary mason matt matthew maurice max maya megan melissa
mia michael miles molly monica morgan nancy naomi natalie nathan ned neil nick nicole nina noah nora norman oliver
oscar owen pamela patrick
"""
NAMES = tuple(_NAMES.split())
