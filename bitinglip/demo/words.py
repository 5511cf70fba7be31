"""Common English words of three to six letters, for the questions that ask for a word backwards."""

_LIST = """
able acid acorn actor agent alarm album alert alley amber anchor angle animal ankle apple april arch arena arm army
arrow artist ash atlas atom attic aunt autumn award axe baby back badge bag baker ball banana band bank barn basin
basket bath beach bead beam bean bear beard bed bee beetle bell belt bench berry bike bird biscuit bishop black blade
blank blue board boat body bolt bone book boot border bottle bowl box boy brain branch brass bread brick bride bridge
broom brown brush bucket bud bus bush butter button cabin cable cake camel camera camp candle canoe cap car card
carpet carrot cart castle cat cave cedar chain chair chalk cheese cherry chess chest child chin circle city clay clerk
cliff clock cloth cloud clover coal coast coat coffee coin collar comet copper coral cord cork corn cotton couch
cousin cow crab crane cream crew crow crown cup curtain cycle dance dawn day deer desert desk dinner dish diver doctor
dog doll donkey door dove dragon drama draw dream dress drill drum duck dust eagle ear earth east echo edge egg elbow
elm empty engine eye face fact falcon farm father feast fence fern ferry field fig film finger fire fish flag flame
flock floor flour flower flute fly fog folk food foot forest fork fort fox frame friend frog frost fruit game garden
garlic gate ghost giant gift ginger girl glass globe glove goat gold goose grain grape grass gravel green guest guitar
hair hall hammer hand harbor harp hat hawk hazel heart hello heron hill hive honey hook horn horse hotel house hunter
ice ink insect iron island ivory ivy jacket jam jar jelly jewel juice jungle kettle key king kite kitten knee knife
knot ladder lake lamb lamp land lark lawn leaf leg lemon letter light lily lime linen lion lip lizard lock log lunch
magnet maple marble market mask meadow medal melon metal milk mill mint mirror mist mole monkey month moon moss moth
motor mouse mouth mud music nail name napkin neck needle nest net night north nose note nut oak oar oat ocean olive
onion orange orchid otter oven owl oyster paint palace palm panda paper parcel park parrot path peach pear pearl
pebble pen pencil pepper piano pig pigeon pillow pilot pine pipe pirate planet plant plate plum pocket poem poet pond
pony poppy porch potato pump puppy purple queen quilt rabbit radio rain ranch raven ribbon rice ring river road robin
robot rock roof room root rope rose ruby rug ruler saddle sail salad salmon salt sand school sea seal seed shadow
sheep shelf shell ship shirt shoe shore silk silver sister skirt sky sleep smile smoke snail snake snow soap sock sofa
soil soup south spice spider spoon spring square stairs star steam stone storm stove straw street sugar summer sun
swan table tail tea temple tent theory thorn thread throne thumb tiger timber toast tomato tower town toy train tree
trout tulip tunnel turkey turtle valley velvet violin voice wagon wall walnut watch water wave wax west whale wheat
wheel window wine wing winter wolf wood wool worker world yard year yellow zebra
"""

WORDS: tuple[str, ...] = tuple(_LIST.split())
