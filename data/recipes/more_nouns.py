"""More nouns for the world of `world.py`, 640 of them in two tables.

SAME: emoji labels that are good nouns as they stand. RENAMED: `noun | emoji labels | 3-D models`, in the form of
`world.py`; a word that stands there too gets the pictures named here on top of its own. A thing may have two nouns, a
general and a particular one: a basketball is also a ball.
"""

from __future__ import annotations

SAME = """
gorilla; orangutan; leopard; moose; donkey; bison; ox; boar; llama; mammoth; rat; beaver; bat; sloth; otter;
skunk; badger; turkey; dove; dodo; feather; wing; goose; lizard; seal; coral; jellyfish; shrimp; squid; oyster;
bug; ant; beetle; cricket; cockroach; spider web; scorpion; mosquito; fly; worm; microbe; lotus; rosette;
hyacinth; seedling; herb; shamrock; panda; koala; polar bear; poodle; rooster; ram; blowfish;
chipmunk; baby chick; melon; mango; blueberries; olive; avocado; eggplant; cucumber; garlic; onion; peanuts;
beans; chestnut; croissant; flatbread; pretzel; bagel; pancakes; waffle; bacon; taco; burrito; tamale; falafel;
fondue; popcorn; rice cracker; rice ball; spaghetti; fried shrimp; dumpling; fortune cookie; takeout box; shaved
ice; pie; sake; sushi; bubble tea; chopsticks; jar; shortcake; baguette bread; cheese wedge; honey pot; compass;
stadium; brick; hut; post office; hospital; bank; hotel; school; department store; factory; mosque; synagogue;
shinto shrine; ferris wheel; roller coaster; barber pole; bullet train; monorail; tram; trolleybus; ambulance;
police car; taxi; auto rickshaw; roller skate; bus stop; fuel pump; anchor; ferry; parachute; satellite;
stopwatch; thermometer; shooting star; tornado; snowflake; comet; sailboat; speedboat; canoe; passenger ship;
locomotive; pickup truck; minibus; kick scooter; crescent moon; circus tent; small airplane; high-speed train;
desert island; derelict house; office building; sparkler; firecracker; party popper; wind
chime; ribbon; ticket; softball; boxing glove; ice skate; skis; sled; curling stone; crystal ball;
magic wand; joystick; slot machine; puzzle piece; yarn; knot; soccer ball; basketball; volleyball; baseball;
thread; yo-yo; nesting dolls; fireworks; moai; glasses; goggles; lab coat; safety vest; necktie; jeans; scarf;
gloves; coat; socks; kimono; sari; briefs; shorts; bikini; folding hand fan; purse; clutch bag; shopping bags;
flat shoe; ballet shoes; top hat; graduation cap; lipstick; loudspeaker; megaphone; saxophone; accordion; banjo;
maracas; flute; pager; fax machine; battery; keyboard; computer mouse; trackball; floppy disk; abacus; movie
camera; clapper board; video camera; light bulb; open book; scroll; bookmark; coin; money bag; credit card;
receipt; envelope; fountain pen; pen; paintbrush; crayon; memo; clipboard; pushpin; paperclip; dagger; bomb;
boomerang; shield; screwdriver; gear; clamp; toolbox; test tube; petri dish; microscope; syringe; pill; crutch;
stethoscope; x-ray; plunger; razor; safety pin; soap; bubbles; toothbrush; shopping cart; cigarette; coffin;
headstone; funeral urn; running shoe; hiking boot; wine glass; beer mug; rolled-up newspaper; alarm clock;
mantelpiece clock; spiral notepad; musical keyboard; magnet; baby; prince; princess; baby angel; superhero;
supervillain; fairy; vampire; mermaid; merman; elf; genie; zombie; troll; ogre; goblin; astronaut; firefighter;
police officer; detective; guard; ninja; farmer; cook; mechanic; scientist; singer; artist; pilot; teacher;
judge; student; health worker; factory worker; construction worker; skier; snowboarder; ear; nose; eye; mouth;
tongue; tooth; bone; brain; lungs; foot; leg; footprints; handshake; mechanical arm; mechanical leg; old man;
old woman; speech balloon; broken heart; heart on fire; heart with arrow
"""

RENAMED = """
buffalo | water buffalo |
paw print | paw prints |
shell | spiral shell |
caterpillar | bug |
wheat | sheaf of rice |
clover | four leaf clover |
nest | nest with eggs, empty nest |
kiwi | kiwi fruit |
chili | hot pepper |
lettuce | leafy green |
ginger | ginger root |
pea | pea pod |
meat | meat on bone | sc:steak
drumstick | poultry leg |
steak | cut of meat | sc:steak
pita | stuffed flatbread |
fried egg | cooking |
paella | shallow pan of food |
stew | pot of food |
salad | green salad | sc:bowlWithSalad
butter | butter | zero:butter
salt shaker | salt |
can | canned food |
bento | bento box |
rice | cooked rice |
curry | curry rice |
sweet potato | roasted sweet potato |
mooncake | moon cake |
skewer | dango |
pudding | custard |
cocktail | cocktail glass, tropical drink | by:cocktailGlass
beer | beer mug, clinking beer mugs | zero:beerGlass
whiskey | tumbler glass |
soda | cup with straw |
juice | beverage box |
milk | glass of milk | zero:tetrapak
wine | wine glass |
coffee | hot beverage |
tea | teacup without handle |
ice cube | ice |
cutlery | fork and knife |
roast chicken | | sc:roasted-chicken
map | world map |
parasol | umbrella on ground, beach with umbrella |
island | desert island |
temple | classical building |
crane | building construction |
log | wood | sc:wood_logs
shop | convenience store |
chapel | wedding |
slide | playground slide |
subway | metro |
fire truck | fire engine |
race car | racing car |
wheelchair | manual wheelchair | by:wheelchair
road | motorway |
railway | railway track |
siren | police car light |
traffic light | vertical traffic light, horizontal traffic light |
barrier | construction |
lifebuoy | ring buoy |
motorboat | motor boat |
cable car | aerial tramway, mountain cableway |
hourglass | hourglass done, hourglass not done |
timer | timer clock |
wall clock | twelve o’clock, three o’clock, ten o’clock, eight-thirty, four o’clock |
planet | ringed planet |
storm cloud | cloud with lightning, cloud with lightning and rain |
rain cloud | cloud with rain |
lightning | high voltage |
water drop | droplet |
wave | water wave |
medal | sports medal, 1st place medal, 2nd place medal, 3rd place medal |
football | american football |
rugby ball | rugby football |
tennis ball | tennis |
frisbee | flying disc |
bowling pin | bowling |
cricket bat | cricket game |
hockey stick | field hockey, ice hockey |
paddle | ping pong | by:tableTennisBat
racket | badminton | zero:tennisRacket
karate suit | martial arts uniform |
goal | goal net |
golf flag | flag in hole |
fishing rod | fishing pole |
diving mask | diving mask |
target | bullseye |
water gun | water pistol |
pool ball | pool 8 ball |
gamepad | video game | sc:ps4-joystick
disco ball | mirror ball |
spade | spade suit |
club | club suit |
pawn | chess pawn |
playing card | joker, flower playing cards | zero:cardGame
mahjong tile | mahjong red dragon |
theatre mask | performing arts |
painting | framed picture |
palette | artist palette |
needle | sewing needle |
sock | socks | sc:chaussette
glove | gloves | sc:gant-textured
swimsuit | one-piece swimsuit |
blouse | woman’s clothes |
sandal | thong sandal, woman’s sandal |
slipper | | zero:slippers
high heel | high-heeled shoe | sc:woman_shoes
comb | hair pick | zero:comb
helmet | military helmet, rescue worker’s helmet |
necklace | prayer beads |
gem | gem stone |
speaker | speaker high volume |
horn | postal horn |
music note | musical note |
studio microphone | studio microphone |
plug | electric plug |
printer | printer |
disc | optical disk, dvd |
film strip | film frames |
projector | film projector | sc:video-projector
cassette | videocassette |
magnifier | magnifying glass tilted left, magnifying glass tilted right |
flashlight | flashlight | kl:flashlight
oil lamp | diya lamp |
notebook | notebook, notebook with decorative cover, ledger |
newspaper | newspaper | kl:newspaper
tag | label |
banknote | dollar banknote, euro banknote, pound banknote, yen banknote | sc:billet-10-euros, sc:billet-50-euros
letter | love letter, incoming envelope |
briefcase | briefcase | zero:briefcase
folder | file folder, open file folder |
calendar | calendar, tear-off calendar | zero:kalender
bar chart | bar chart |
ruler | straight ruler | zero:ruler
set square | triangular ruler |
filing cabinet | file cabinet | kl:filing-cabinet
trash can | wastebasket | kl:park-trashcan, kl:residential-trashcan, kl:bullet-trash-can, zero:dustbin
padlock | locked, unlocked |
pickaxe | pick |
sword | crossed swords |
bow | bow and arrow |
saw | carpentry saw | sc:scie-egoine
screwdriver | screwdriver | sc:tournevis
bolt | nut and bolt |
scales | balance scale |
cane | white cane |
chain | chains, link |
hook | hook |
ladder | ladder | sc:step-ladder-metal, sc:step-ladder-wood
flask | alembic |
satellite dish | satellite antenna |
bandage | adhesive bandage |
door | door | kl:exterior-door-01, kl:exterior-door-03, kl:exterior-door-05, sc:puerta, sc:door
elevator | elevator | sc:elevator
mirror | mirror |
window | window | kl:window-01, sc:window_2x3, sc:window_2x4_arched, sc:window_4x3
shower | shower | zero:showerStall
mousetrap | mouse trap |
lotion | lotion bottle | zero:flacon
broom | broom | sc:broom
toilet paper | roll of paper |
sponge | sponge | sc:com_bath2_esponja
fire extinguisher | fire extinguisher | zero:fireExtinguisher
evil eye | nazar amulet |
picket sign | placard |
identity card | identification card |
warning sign | warning |
no entry sign | no entry |
radiation sign | radioactive |
arrow | right arrow, left arrow, up arrow, down arrow |
peace sign | peace symbol |
check mark | check mark, check mark button |
cross mark | cross mark, cross mark button |
question mark | red question mark, white question mark |
exclamation mark | red exclamation mark, white exclamation mark |
circle | red circle, orange circle, yellow circle, green circle, blue circle, purple circle, brown circle |
square | red square, orange square, yellow square, green square, blue square, purple square, brown square |
diamond | large orange diamond, large blue diamond, diamond suit |
triangle | red triangle pointed up, red triangle pointed down |
recycling sign | recycling symbol |
dollar sign | heavy dollar sign |
yin yang | yin yang |
cross | latin cross |
menorah | menorah |
atom | atom symbol |
santa | Santa Claus |
pinata | piñata |
liberty statue | Statue of Liberty |
play button | play button |
pause button | pause button |
smiley | grinning face, slightly smiling face, smiling face, smiling face with smiling eyes |
sad face | frowning face, slightly frowning face, disappointed face |
angry face | angry face, enraged face |
crying face | crying face, loudly crying face |
sleeping face | sleeping face |
winking face | winking face |
laughing face | face with tears of joy, grinning squinting face |
kissing face | face blowing a kiss, kissing face |
cowboy | cowboy hat face |
nerd | nerd face |
devil | smiling face with horns, angry face with horns |
sick face | face with thermometer, face with medical mask, nauseated face |
party face | partying face |
frozen face | cold face |
poop | pile of poo |
explosion | collision |
hand | raised hand, waving hand, hand with fingers splayed, raised back of hand |
fist | raised fist, oncoming fist |
thumb | thumbs up |
biceps | flexed biceps |
lips | kiss mark, biting lip |
king | person with crown |
wizard | man mage, mage |
witch | woman mage |
bride | woman with veil, person with veil |
groom | man in tuxedo |
dancer | woman dancing, man dancing |
runner | person running, man running, woman running |
surfer | person surfing, man surfing |
swimmer | person swimming |
cyclist | person biking, woman biking |
climber | person climbing, man climbing |
golfer | person golfing, woman golfing |
fencer | person fencing |
juggler | person juggling |
rower | person rowing boat |
weightlifter | person lifting weights |
sitting man | | re:sitMale01, re:sitMale02, re:sitMale03
sitting woman | | re:sitFemale01, re:sitFemale02, re:sitFemale03
blender | | by:kitchenblender
oven | | zero:oven, zero:doubleOven, sc:small-oven
stove | | zero:stove, by:largeStove, kl:propane-stove, sc:cooker
microwave | | by:microwave
fridge | | zero:refrigerator, zero:largeFridge, kl:fridge
washing machine | | sc:clothes_washing_machine, by:washing_machine
radiator | | zero:radiator1, zero:radiator2, by:modernRadiator
pool table | | zero:poolTable
foosball table | | zero:table_football
ping pong table | | by:table_tennis
shelf | | zero:shelves, zero:verticalShelves, kl:utility-shelving
sink | | zero:washbasin, by:washbasin_jay_hardy, by:kitchenSink
towel | | zero:towel2, by:towel, sc:com_bath3_toalla
whiteboard | | zero:whiteBoard
deck chair | | zero:deckChair, by:chair_deck, sc:beach_chair
potty | | zero:potty
crib | | zero:babyRockingBed, sc:crib
ceiling fan | | zero:ceilingFan
locker | | zero:lockedLocker
swing | | zero:childSwing, sc:child_swing
coffee machine | | zero:coffeeBrewer, kl:coffee-maker, sc:coffee_machine
fence | | zero:fence
forklift | | zero:forkLift
orchid | | zero:orchids
seesaw | | zero:seesaw
container | | zero:shippingContainer
staircase | | zero:spiralStaircase
street lamp | | kl:classic-lamppost, sc:farola1, kl:park-light
wall lamp | | zero:wallLight, kl:porch-light
ceiling lamp | | sc:ceiling-lamp, by:hangingLight, kl:hanging-restaurant-light
chandelier | | sc:chandelier-lamp
bunk bed | | by:bunkBed
cutting board | | by:choppingBoard
pan | | by:largePan
safe | | by:sef-kasa
suit | | by:suit
chessboard | | by:chessboard
nightstand | | zero:bedsideTable2, by:bedsideTable
treadmill | | by:treadmill
exercise bike | | sc:indoor-bike
column | | kl:porch-column-01, kl:porch-column-02
spray bottle | | kl:spray-bottle
ashtray | | kl:ashtray
tape measure | | kl:tape-measure
hose | | kl:hose-reel
stapler | | kl:stapler
rug | | kl:oriental-rug, sc:round-carpet
curtain | | sc:curtain
shovel | | sc:shovel
fireplace | | sc:fireplace1, sc:fireplace2
swimming pool | | sc:swimming-pool, sc:round-swimming-pool
doghouse | | sc:dog-house
punching bag | | sc:punching-ball
trampoline | | sc:trampoline
stroller | | sc:stroller
bonsai | | sc:bonsai-tree
tablet | | sc:tablet
high chair | | sc:baby_high_chair
drill | | sc:perceuse-electrique
hedge | | sc:hedge, sc:high-hedge
bush | | sc:bush
bamboo | | by:luckyBamboo
cypress | | sc:cypress
poplar | | sc:poplar
toilet brush | | zero:toiletBrush
pallet | | zero:pallet
air conditioner | | sc:external-unity-air-conditioning, sc:internal-unity-air-conditioning
remote control | | sc:tv-remote-control
game console | | sc:playstation4
drying rack | | sc:clothes-horse
pinball machine | | sc:flipper
chair | | zero:thonet, zero:designChair, by:chair3, sc:chair4, kl:office-chair, sc:plastic_chair
office chair | | kl:office-chair, sc:office_chair
folding chair | | zero:foldingChair, by:foldingChair
table | | zero:tableWithTablecloth, by:coffeeTable, sc:coffee_table, sc:round-table
coffee table | | by:coffeeTable, sc:coffee_table
sofa | | by:sofa3, kl:mid-century-sofa, sc:simple_sofa, zero:couch2
armchair | | zero:modernArmchair, by:fotel, kl:mid-century-chair, sc:rattanArmchair
bed | | sc:bed1, zero:bedWithTexture, by:juniorBed
car | | sc:peugeot-308, sc:renault-scenic
lamp | | sc:desk_lamp2, sc:little_lamp2, sc:table_lamp, by:hangingLight
boot | hiking boot |
umbrella | umbrella with rain drops | zero:umbrellaFolded
watch | | sc:montre
plant | | sc:ficus, by:succulentPlant, sc:maceta
tree | | sc:ficusTree, sc:poplar
palm | | sc:sabalPalmeto
"""

# Words that are plural already, or never come in twos and threes.
_SINGLE = """
lungs; footprints; bubbles; fireworks; lightning; cutlery; lips; scales; road; blueberries; peanuts; beans; pancakes;
chopsticks; skis; goggles; jeans; gloves; socks; briefs; shorts; glasses; maracas; biceps; rice;
popcorn; spaghetti; bacon; garlic; lettuce; ginger; wheat; curry; butter; milk; juice; coffee; tea; beer; wine; sake;
soda; whiskey; coral; yarn; thread; soap; poop; handshake; santa; nesting dolls; shopping bags; ballet shoes;
bubble tea; toilet paper; yin yang; fried shrimp; heart on fire; heart with arrow
"""
SINGLE = {word.strip() for word in _SINGLE.split(";")}
_UNCHANGED = ("bison", "moose", "buffalo", "shrimp", "squid", "jellyfish", "blowfish")
IRREGULAR = {word: word for word in _UNCHANGED} | {
    "goose": "geese",
    "ox": "oxen",
    "foot": "feet",
    "tooth": "teeth",
    "elf": "elves",
    "shelf": "shelves",
    "scarf": "scarves",
    "merman": "mermen",
}
